"""What each Ray Train worker of a reward model runs: TRL's RewardTrainer with DeepSpeed, then measure and save."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch

from rlhf_ray.config import RewardModelConfig
from rlhf_ray.data.preferences import PreferencePair
from rlhf_ray.errors import UserError
from rlhf_ray.machine import cpu_cores
from rlhf_ray.models.device import compute_dtype
from rlhf_ray.models.engine import import_deepspeed
from rlhf_ray.models.folder import resolve_model
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward.text import Conversation, Encoded, TextEncoder
from rlhf_ray.models.reward_model import RewardStats, load_tokenizer, make_reward_backbone, save_stats

STATS_PAIRS = 128
"""Training pairs behind mean and std: enough for both to within some 6 %, and scoring all of a large set is slow."""
LOG_EVERY_S = 5.0


def train_worker(loop_config: Mapping[str, Any]) -> dict[str, float]:
    """Trains on this rank's share. Rank 0 saves the model and returns how many held-out pairs it orders rightly and
    how many training answers were truncated; other ranks return nothing.

    `loop_config` holds the `RewardModelConfig`, the model folder and the progress file to write, and a Ray reference to
    the two lists of pairs: `Any`, because Ray Train hands over a plain dictionary.
    """
    config = cast(RewardModelConfig, loop_config["config"])
    train, heldout = cast(tuple[list[PreferencePair], list[PreferencePair]], ray.get(loop_config["data"]))
    context = ray.train.get_context()
    cores = cpu_cores()
    torch.set_num_threads(config.placement.threads or max(1, cores // context.get_local_world_size()))
    folder = resolve_model(config.model.path)
    state, truncated = _train(config, folder, train, Path(str(loop_config["progress"])))
    figures: dict[str, float] = {}
    if context.get_world_rank() == 0:
        torch.set_num_threads(config.placement.threads or cores)  # the other ranks are done
        target = Path(str(loop_config["model_dir"]))
        unfinished = target.with_name(".model-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        _save(config, folder, state, unfinished)
        del state
        right, stats = _measure(config, unfinished, train, heldout)
        save_stats(unfinished, stats)
        _write_card(config, unfinished, right, len(heldout))
        unfinished.rename(target)
        figures = {"right": float(right), "truncated": float(truncated)}
    return figures


def _train(
    config: RewardModelConfig, folder: Path, pairs: Sequence[PreferencePair], progress: Path
) -> tuple[dict[str, torch.Tensor], int]:
    """The trained weights, whole on rank 0 whatever the ZeRO stage, and how many answers were cut on the left."""
    import_deepspeed()
    from datasets import Dataset  # type: ignore[import-untyped]  # ships no types
    from transformers import PrinterCallback
    from transformers.utils import logging
    from trl import RewardTrainer  # type: ignore[attr-defined]  # exported lazily

    # Else a report of the dropped layers, as if that were a mistake.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers is partly untyped
    tokenizer = load_tokenizer(folder)
    encoder = TextEncoder(tokenizer, RewardSpec(backbone="decoder", max_tokens=config.data.max_tokens))
    chosen, cut_chosen = _rows(encoder([(p.prompt, p.chosen) for p in pairs]))
    rejected, cut_rejected = _rows(encoder([(p.prompt, p.rejected) for p in pairs]))
    if any(row[-1] == tokenizer.pad_token_id for row in chosen):
        raise UserError(f"{folder}: the chat template ends with the padding token, so the end of a text is not seen")
    # Made before the training arguments: under ZeRO-3 they turn every later load into a partitioned one.
    model = make_reward_backbone(folder, config.num_layers, torch.float32, config.seed)
    model.get_input_embeddings().requires_grad_(False)  # the largest matrix of a small model, and mostly unseen tokens
    lengths = [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    trainer = RewardTrainer(
        model=model,
        args=_arguments(config),
        train_dataset=Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected, "length": lengths}),
        processing_class=tokenizer,
        peft_config=_lora(config),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_progress(progress))
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight.detach().cpu() for name, weight in state.items()}, cut_chosen + cut_rejected


def _rows(encoded: Sequence[Encoded]) -> tuple[list[list[int]], int]:
    """Token ids, and how many conversations were cut."""
    return [list(row.ids) for row in encoded], sum(row.truncated for row in encoded)


def _arguments(config: RewardModelConfig) -> Any:
    """TRL's arguments, a `RewardConfig` (untyped in the library)."""
    from trl import RewardConfig  # type: ignore[attr-defined]  # exported lazily

    gpu = config.gpus_per_worker > 0
    low_precision = gpu and compute_dtype(config.model.dtype) == torch.bfloat16
    deepspeed: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": config.deepspeed.gradient_clipping,
        "zero_optimization": {
            "stage": config.deepspeed.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": low_precision},
        # No optimizer section: torch's AdamW is handed over instead. DeepSpeed's own is compiled for 81 s on a CPU.
        "zero_force_ds_cpu_optimizer": False,
    }
    return RewardConfig(
        output_dir="trainer",  # never written: Ray Train's working directory of this worker
        deepspeed=deepspeed,
        per_device_train_batch_size=config.batch_size // config.num_workers,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        optim="adamw_torch",
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_length=None,  # `encode` has cut already; TRL would drop
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,  # the sampler reads the column `length`
        disable_dropout=True,
        gradient_checkpointing=gpu,
        use_cpu=not gpu,
        bf16=low_precision,
        fp16=False,
        ddp_backend="nccl" if gpu else "gloo",
        seed=config.seed,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
    )


def _lora(config: RewardModelConfig) -> Any:
    """The peft configuration, or None for full fine-tuning. The new score head is always trained whole."""
    if config.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS",
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=["score"],
    )


def _progress(file: Path) -> Any:
    """A callback that appends a plain line to `file` every few seconds, on rank 0; the driver prints it."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        started = last = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            now = time.monotonic()
            over = state.global_step >= state.max_steps
            if not state.is_world_process_zero or "loss" not in logs or (now - self.last < LOG_EVERY_S and not over):
                return
            self.last = now
            with file.open("a", encoding="utf-8") as lines:
                lines.write(
                    f"reward: step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.3f}, "
                    f"batch accuracy {float(logs['accuracy']):.2f}, {now - self.started:.0f} s\n"
                )

    return Progress()


def _save(config: RewardModelConfig, folder: Path, state: dict[str, torch.Tensor], target: Path) -> None:
    """The trained weights `state` in Hugging Face layout: a fresh backbone takes them, and adapters are merged."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Else ZeRO-3 partitions this copy too.
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]  # transformers is partly untyped
    dtype = compute_dtype(config.model.dtype) if config.gpus_per_worker > 0 else torch.float32
    model: Any = make_reward_backbone(folder, config.num_layers, dtype, config.seed)
    lora = _lora(config)
    if lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, lora)
    model.load_state_dict(state)
    if lora is not None:
        model = model.merge_and_unload()
    model.save_pretrained(target)
    load_tokenizer(folder).save_pretrained(target)


def _measure(
    config: RewardModelConfig, folder: Path, train: Sequence[PreferencePair], heldout: Sequence[PreferencePair]
) -> tuple[int, RewardStats]:
    """How many held-out pairs the saved model orders rightly (a tie is wrong), and its scores' mean and std.

    It reads the folder as any user would, so a fault of saving shows up in the accuracy.
    """
    raw = RewardStats(mean=0.0, std=1.0, answers=0, max_tokens=config.data.max_tokens)
    save_stats(folder, raw)  # cuts like training; replaced by the measured ones
    model = RewardScorer.load(folder, config.model.dtype)
    drawn = random.Random(config.seed).sample(list(train), min(STATS_PAIRS, len(train)))
    seen = model.raw_scores(_answers(drawn))
    std = statistics.pstdev(seen)
    if not std > 0:
        raise UserError("the reward model gives every answer the same score; raise learning_rate or epochs")
    scores = model.raw_scores(_answers(heldout))
    right = sum(a > b for a, b in zip(scores[::2], scores[1::2], strict=True))
    return right, raw.model_copy(update={"mean": statistics.fmean(seen), "std": std, "answers": len(seen)})


def _answers(pairs: Sequence[PreferencePair]) -> list[Conversation]:
    """chosen, rejected, chosen, rejected, ..."""
    return [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]


def _write_card(config: RewardModelConfig, folder: Path, right: int, heldout: int) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(pipeline_tag="text-classification", library_name="transformers", tags=["reward-model", "rlhf"])
    text = f"""---
{data.to_yaml()}
---

# {config.name}

A Bradley-Terry reward model, trained by rlhf-ray from `{config.model.path}`
({config.num_layers or "all"} layers) on the preference pairs of `{config.data.path}`.

Held-out accuracy: {right} of {heldout} pairs, no prompt of which was trained on.

Score a conversation: render it with the chat template, answer included and no generation prompt, and read the label at
the last token. `reward_stats.json` holds the mean and the standard deviation of the raw scores of training answers.
"""
    ModelCard(text).save(folder / "README.md")
