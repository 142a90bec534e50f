"""The DPO family: TRL's trainers on rows that are tokenized already, each with the commits of `Committed`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trl import DPOConfig as DPOArguments  # type: ignore[attr-defined]  # exported lazily
from trl import DPOTrainer, KTOTrainer  # type: ignore[attr-defined]  # exported lazily
from trl import KTOConfig as KTOArguments  # type: ignore[attr-defined]  # exported lazily
from trl.experimental.cpo import CPOConfig as CPOArguments
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOConfig as ORPOArguments
from trl.experimental.orpo import ORPOTrainer

from rlhf_ray.algorithms.adaptive_beta import KLTarget
from rlhf_ray.config import PreferenceConfig
from rlhf_ray.config.offline import CPOConfig, DPOConfig, KTOConfig, ORPOConfig
from rlhf_ray.data.convert import as_pairs, as_thumbs
from rlhf_ray.data.encoding import Conversation, Encoder
from rlhf_ray.evidence import Item, Pair, Thumb
from rlhf_ray.offline.adaptive_beta import BetaProbe, gradient_scale, make_controller
from rlhf_ray.offline.arguments import lora_config
from rlhf_ray.offline.committed import Committed
from rlhf_ray.offline.setup import PolicySetup

Row = Mapping[str, object]


def preference_rows(
    config: PreferenceConfig, items: Iterable[Item], encoder: Encoder
) -> tuple[Iterator[Row], Mapping[str, int]]:
    """The rows of the method's trainer, and how many items they leave out by reason (filled while they are read).

    Pairs are `prompt_ids, chosen_ids, rejected_ids`; KTO has single answers, `completion_ids` with a boolean `label`.
    `length` is that of the longest text in the row.
    """
    if isinstance(config.method, KTOConfig):
        thumbs = as_thumbs(items, config.data.rating_scale)
        return _single_rows(thumbs, encoder), thumbs.left_out
    free = isinstance(config.method, DPOConfig) and config.method.reference == "none"
    pairs = as_pairs(items)
    return pair_rows(pairs, encoder, free), pairs.left_out


def _single_rows(thumbs: Iterable[Thumb], encoder: Encoder) -> Iterator[Row]:
    for conversation, ids in encoder(Conversation(t.prompt, t.answers, t.label.where, t.good) for t in thumbs):
        yield {"prompt_ids": ids.prompt_ids, "completion_ids": ids.answer_ids[0], "label": conversation.label}


def pair_rows(pairs: Iterable[Pair], encoder: Encoder, free: bool = False) -> Iterator[Row]:
    """A row a pair; with `free`, log-probabilities of 0 stand for the reference's."""
    reference = {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0} if free else {}
    for _, ids in encoder(Conversation(p.prompt, p.answers, p.label.where) for p in pairs):
        chosen, rejected = ids.answer_ids
        row = {"prompt_ids": ids.prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected, "length": ids.length}
        yield row | reference


def preference_trainer(
    config: PreferenceConfig,
    model: Any,
    tokenizer: Any,
    train: Any,
    heldout: Any,
    arguments: dict[str, Any],
    setup: PolicySetup,
) -> Any:
    """The trainer of the method, ready to `train()`."""
    common = {"model": model, "processing_class": tokenizer, "train_dataset": train, "eval_dataset": heldout}
    common |= {"peft_config": lora_config(config.lora), "setup": setup}
    method, longest = config.method, config.data.max_tokens
    if isinstance(method, DPOConfig):
        return CommittedDPO(args=_dpo_arguments(method, arguments, longest), method=method, **common)
    if isinstance(method, KTOConfig):
        kto = KTOArguments(
            **arguments,
            loss_type=method.loss,
            beta=method.beta,
            desirable_weight=method.desirable_weight,
            undesirable_weight=method.undesirable_weight,
            max_length=longest,
        )
        return CommittedKTO(args=kto, **common)
    if isinstance(method, ORPOConfig):
        orpo = ORPOArguments(**arguments, beta=method.beta, max_length=longest, remove_unused_columns=False)
        return CommittedORPO(args=orpo, **common)
    assert isinstance(method, CPOConfig)  # the union has no other member
    cpo = CPOArguments(
        **arguments,
        loss_type=method.loss,
        beta=method.beta,
        cpo_alpha=method.sft_weight,
        simpo_gamma=method.simpo_gamma,
        alpha=method.alpha,
        max_length=longest,
        remove_unused_columns=False,
    )
    return CommittedCPO(args=cpo, **common)


def _dpo_arguments(method: DPOConfig, arguments: dict[str, Any], longest: int) -> Any:
    smoothing = method.label_smoothing
    if "cdpo" in method.losses:
        # -(1-e) logsig(x) - e logsig(-x), which TRL has not, is its `robust` loss at this negative smoothing.
        smoothing = -smoothing / (1 - 2 * smoothing)
    return DPOArguments(
        **arguments,
        loss_type=["robust" if loss == "cdpo" else loss for loss in method.losses],
        loss_weights=list(method.loss_weights) if method.loss_weights else None,
        beta=method.beta,
        label_smoothing=smoothing,
        precompute_ref_log_probs=method.precompute_reference or method.reference == "none",
        sync_ref_model=method.reference == "synced",
        ref_model_sync_steps=method.sync_every,
        ref_model_mixup_alpha=method.sync_mix,
        f_divergence_type=method.f_divergence,
        f_alpha_divergence_coef=method.alpha,
        discopop_tau=method.discopop_tau,
        ld_alpha=method.length_desensitization,
        use_weighting=method.weighting,
        max_length=longest,
    )


class CommittedDPO(Committed, DPOTrainer):
    """DPO and its relatives, with beta as a controller leaves it."""

    def __init__(self, *arguments: Any, method: DPOConfig, **keywords: Any) -> None:
        self._method = method
        super().__init__(*arguments, **keywords)
        controller = make_controller(method)
        if controller is not None:
            self.setup.controllers["beta"] = controller
            self._probe = BetaProbe(self, controller, _answer_tokens(self.train_dataset))
        self._steered = isinstance(controller, KLTarget)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *others: Any, **more: Any) -> Any:
        """TRL's loss. While a target KL steers beta, with the gradient of what does not grow with beta: Adam divides by
        the size of past gradients, so that after a spell of large beta a small one would hardly move the policy."""
        loss = super().compute_loss(model, inputs, return_outputs, *others, **more)  # type: ignore[no-untyped-call]  # TRL
        if not self._steered or return_outputs or not model.training:
            return loss
        return loss + (gradient_scale(self._method, self.beta) - 1) * (loss - loss.detach())

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        return dataset  # tokenized before the group started

    def _precompute_ref_logps(self, dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        if self._method.reference == "none":  # its columns are there, and 0
            return dataset
        return super()._precompute_ref_logps(dataset, *arguments, **keywords)


def _answer_tokens(pairs: Any) -> float:
    """Mean length of chosen and rejected answers."""
    return sum(len(ids) for name in ("chosen_ids", "rejected_ids") for ids in pairs[name]) / (2 * len(pairs))


class CommittedKTO(Committed, KTOTrainer):
    """KTO. The mismatched answers of its KL term are those of the neighbours in a microbatch."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        if not self.calculate_KL:
            return dataset.shuffle(seed=args.seed)

        def rotate(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            answers = rows["completion_ids"]
            return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

        shuffled = dataset.shuffle(seed=args.seed)  # once: rows are read in this order, so that neighbours stay
        return shuffled.map(rotate, batched=True, batch_size=args.per_device_train_batch_size)


class _Tokenized:
    """For TRL's older trainers: rows as they keep them, from token ids instead of text."""

    def tokenize_row(self, feature: dict[str, list[int]], *_: Any) -> dict[str, list[int]]:
        """Inputs, masks and labels of one pair; the prompt's labels do not count."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name in ("chosen", "rejected"):
            answer = feature[f"{name}_ids"]
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{name}_labels"] = [-100] * len(prompt) + answer
        return row


class CommittedORPO(Committed, _Tokenized, ORPOTrainer):
    """ORPO."""


class CommittedCPO(Committed, _Tokenized, CPOTrainer):
    """CPO and SimPO."""
