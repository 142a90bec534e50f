"""Supervised fine-tuning: TRL's SFTTrainer on rows that are tokenized already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trl import SFTConfig as SFTArguments  # type: ignore[attr-defined]  # exported lazily
from trl import SFTTrainer, pack_dataset  # type: ignore[attr-defined]  # exported lazily

from rlhf_ray.config import SFTConfig
from rlhf_ray.data.convert import as_demonstrations
from rlhf_ray.data.encoding import Conversation, Encoder
from rlhf_ray.evidence import Demonstration, Item
from rlhf_ray.offline.arguments import lora_config
from rlhf_ray.offline.committed import Committed
from rlhf_ray.offline.setup import PolicySetup


def sft_rows(items: Iterable[Item], encoder: Encoder) -> tuple[Iterator[Mapping[str, object]], Mapping[str, int]]:
    """`input_ids` of prompt and answer with `labels` that count the answer only; and how many items they leave out by
    reason (filled while they are read)."""
    wanted = as_demonstrations(items)
    return _rows(wanted, encoder), wanted.left_out


def _rows(wanted: Iterable[Demonstration], encoder: Encoder) -> Iterator[Mapping[str, object]]:
    for _, ids in encoder(Conversation(d.prompt, (d.answer,), d.where) for d in wanted):
        (answer,) = ids.answer_ids
        labels = [-100] * len(ids.prompt_ids) + answer
        yield {"input_ids": ids.prompt_ids + answer, "labels": labels, "length": ids.length}


def sft_trainer(
    config: SFTConfig,
    model: Any,
    tokenizer: Any,
    train: Any,
    heldout: Any,
    arguments: dict[str, Any],
    setup: PolicySetup,
) -> Any:
    """The trainer, ready to `train()`. The loss is the mean over the answer tokens of the whole optimizer step, on all
    ranks together."""
    longest = config.data.max_tokens
    if config.packing:
        train = pack_dataset(train.remove_columns("length"), longest, "bfd")
    sft = SFTArguments(
        **arguments,
        max_length=longest,
        packing=config.packing,
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return CommittedSFT(
        model=model,
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=heldout,
        peft_config=lora_config(config.lora),
        args=sft,
        setup=setup,
    )


class CommittedSFT(Committed, SFTTrainer):
    """Supervised fine-tuning."""
