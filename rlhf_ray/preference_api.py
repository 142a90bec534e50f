"""Reward models from Python, in one process and without Ray: make, train, save, score.

model = create_reward_model("joint", "smollm2-135m", num_layers=8)
data = PreferenceDataset.from_file("preferences.jsonl", model.encoder)
trainer = RewardModelTrainer(model, learning_rate=1e-4, total_steps=200)
for batch in data.batches(batch_size=8, seed=0):
    print(trainer.train_step(batch))
model.save("my-reward-model")
RewardModelInference("my-reward-model").rank_responses("What is the sun?", ["A star.", "No idea."])
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from rlhf_ray.algorithms.evidence_loss import item_weights, mixed_loss, ordered_pairs
from rlhf_ray.data.feedback import FeedbackConfig, open_feedback
from rlhf_ray.data.length_buckets import LengthBuckets
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.evidence import Item, Kind
from rlhf_ray.models.device import device
from rlhf_ray.models.folder import check_backbone, resolve_model
from rlhf_ray.models.reward.batch import EncodedItem, RewardBatch, collate, encode_items, token_batch
from rlhf_ray.models.reward.build import make_reward_network
from rlhf_ray.models.reward.network import TokenBatch
from rlhf_ray.models.reward.saving import save_reward_model
from rlhf_ray.models.reward.scorer import RewardScorer, measure_scale
from rlhf_ray.models.reward.settings import first_mistake, read_settings
from rlhf_ray.models.reward.text import Conversation, TextEncoder
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.types import Message

PromptLike = str | Sequence[Message | Mapping[str, str]]
"""What the user said, or a conversation as messages or `{"role", "content"}` dictionaries."""
RewardKind = Literal["joint", "separate", "multi_objective", "ensemble"]
ENSEMBLE_MEMBERS = 4
SAMPLED_BATCHES = 32
"""The scale of a model's scores is measured on the answers of so many training steps, the last ones."""


class RewardModel(nn.Module):
    """A reward model to train, on this process's device. `encoder` turns text into its token ids."""

    def __init__(self, base_model_name: str = "smollm2-135m", **settings: object) -> None:
        """`base_model_name` is `smollm2-135m`, `minilm-l6`, a folder or a hub id; `settings` are the fields of
        `RewardModelSettings` (`models/reward/settings.py`). Raises `UserError` for unknown ones, and for a base model
        that does not do.
        """
        super().__init__()
        asked = read_settings(settings)
        folder = resolve_model(base_model_name)
        check_backbone(folder)
        spec = asked.spec(folder)
        self.network = make_reward_network(folder, spec, asked.num_layers, asked.lora, asked.seed).to(device())
        self.encoder = TextEncoder(load_tokenizer(folder, spec.backbone), spec)
        self.recent: deque[TokenBatch] = deque(maxlen=SAMPLED_BATCHES)
        """Batches of the last training steps."""

    def forward(self, batch: TokenBatch) -> tuple[Float[Tensor, " N"], dict[str, Float[Tensor, " N"]]]:
        """The conservative total of each answer, and its reward on each objective (the members' mean), all raw."""
        output = self.network(batch.to(device()))
        rewards = output.scores.mean(dim=1)
        by_objective = {name: rewards[:, index] for index, name in enumerate(self.network.spec.objectives)}
        return self.network.conservative(output.totals), by_objective

    def tokenize(self, pairs: Sequence[tuple[PromptLike, str]]) -> TokenBatch:
        """Prompts with their answers as a batch for the forward pass."""
        return token_batch(self.encoder(_conversations(pairs)), self.encoder.padding)

    @torch.no_grad()
    def save(self, folder: str | Path) -> None:
        """Writes the model, with the scale of its scores on the answers of the last training steps, so that it loads by
        the folder's name: as a reward source of a run, in `RewardModelInference`. Raises `UserError` if the folder
        is there already or the model has not been trained, so that its scale is unknown."""
        target = Path(folder).expanduser()
        if target.exists():
            raise UserError(f"{target} exists already; choose another name or delete it")
        if not self.recent:
            raise UserError("the model has not been trained, so the scale of its scores is unknown; train it first")
        totals = torch.cat([self.network(batch.to(device())).totals for batch in self.recent])
        stats = measure_scale(self.network, totals)
        save_reward_model(target, self.network, self.encoder.tokenizer, stats)


class MultiObjectiveRewardModel(RewardModel):
    """A reward model of several objectives, whose total weighs them equally, by `weights`, or by a learned `gate`."""

    def __init__(self, base_model_name: str, objectives: Sequence[str], **settings: object) -> None:
        """Raises `UserError` for fewer than two objectives."""
        if isinstance(objectives, str) or len(set(objectives)) < 2:
            raise UserError("objectives must name at least two, such as ['helpful', 'harmless']")
        super().__init__(base_model_name, objectives=tuple(objectives), **settings)


def create_reward_model(kind: RewardKind, base_model_name: str = "smollm2-135m", **settings: object) -> RewardModel:
    """An untrained reward model: `joint` (prompt and answer in one backbone), `separate` (one each),
    `multi_objective` (needs `objectives`), `ensemble` (`members` heads or models, 4 if not said).

    `settings` are the fields of `RewardModelSettings`. Raises `UserError` for what does not fit.
    """
    if kind in ("joint", "separate"):
        return RewardModel(base_model_name, **{**settings, "architecture": kind})
    if kind == "multi_objective":
        objectives = settings.pop("objectives", ())
        return MultiObjectiveRewardModel(base_model_name, objectives, **settings)  # type: ignore[arg-type]  # checked there
    if kind == "ensemble":
        if settings.setdefault("members", ENSEMBLE_MEMBERS) == 1:
            raise UserError("an ensemble needs at least two members")
        return RewardModel(base_model_name, **settings)
    raise UserError(f"kind {kind!r} is none of joint, separate, multi_objective, ensemble")


class PreferenceDataset(Dataset[EncodedItem]):
    """Evidence of every shape, tokenized when it is asked for."""

    def __init__(self, items: Sequence[Item], encoder: TextEncoder) -> None:
        """Raises `UserError` naming the row if there is nothing, or something the model cannot learn from."""
        if not items:
            raise UserError("there is no preference to train on")
        self._items = [encoder.spec.check(item) for item in items]
        self._encoder = encoder

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        encoder: TextEncoder,
        part: Literal["train", "heldout"] = "train",
        seed: int = 0,
        **settings: Any,
    ) -> PreferenceDataset:
        """The training or the held-out part of a file, a folder or a hub data set, for the model of `encoder`.

        Whole prompts are held out; the same `seed` and `settings` (fields of `FeedbackConfig`) give parts that belong
        together. Raises `UserError` for rows that cannot be used.
        """
        scale = encoder.spec.rating
        known: dict[str, Any] = {"path": str(path), "max_tokens": encoder.spec.max_tokens}
        if scale is not None:
            known |= {"rating_scale": (scale.low, scale.high), "rating_step": scale.step}
        try:
            config = FeedbackConfig.model_validate({**settings, **known})
        except ValidationError as error:
            raise UserError(f"PreferenceDataset.from_file: {first_mistake(error)}") from None
        feedback = open_feedback(config, seed)
        return cls(list(feedback.train() if part == "train" else feedback.heldout()), encoder)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> EncodedItem:
        return encode_items([self._items[index]], self._encoder)[0]

    def collate(self, items: Sequence[EncodedItem]) -> RewardBatch:
        """A batch of some of its items, for a `DataLoader`."""
        return collate(items, self._encoder)

    def batches(self, batch_size: int, seed: int) -> Iterator[RewardBatch]:
        """Every item once, in batches of similar length. Another `seed` gives another order.

        Characters stand for tokens here, so that nothing is tokenized before its turn.
        """
        lengths = [max(map(len, item.answers)) + sum(len(m.content) for m in item.prompt) for item in self._items]
        order = list(LengthBuckets(lengths, batch_size, seed))
        for start in range(0, len(order), batch_size):
            batch = [self._items[index] for index in order[start : start + batch_size]]
            yield self.collate(encode_items(batch, self._encoder))


class RewardModelTrainer:
    """AdamW with a cosine schedule after a linear warm-up, and clipping by the global norm."""

    def __init__(
        self,
        model: RewardModel,
        total_steps: int,
        learning_rate: float = 5e-5,
        warmup_fraction: float = 0.05,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        loss_weights: Mapping[Kind, float] | None = None,
        center_coef: float = 0.01,
    ) -> None:
        """After `total_steps` steps the learning rate is 0. `loss_weights` by kind of evidence, 1 if not said."""
        self._model, self._max_grad_norm = model, max_grad_norm
        self._kind_weights, self._center_coef = dict(loss_weights or {}), center_coef
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=weight_decay)
        warm = round(warmup_fraction * total_steps)
        self._schedule = LambdaLR(self._optimizer, lambda step: _relative_rate(step, warm, total_steps))

    def train_step(self, batch: RewardBatch) -> dict[str, float]:
        """One optimizer step on `batch`. Gives `loss`, `accuracy` (pairs of answers that people told apart, and the
        model alike; NaN without any), `grad_norm` (before clipping) and `learning_rate`.

        Raises `RunError` if the gradient is not finite; the weights are then as before.
        """
        batch = batch.to(device())
        self._model.train()
        output = self._model.network(batch.tokens)
        denominator = float(item_weights(batch.items, self._kind_weights).sum())
        loss = mixed_loss(
            output.scores, output.totals, batch.items, output.links, self._kind_weights, self._center_coef, denominator
        )
        self._optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if not torch.isfinite(torch.tensor(norm)):
            raise RunError(
                f"the gradient of this batch is not finite (loss {float(loss.detach())}); lower learning_rate"
            )
        rate = self._schedule.get_last_lr()[0]
        self._optimizer.step()
        self._schedule.step()
        self._model.recent.append(batch.tokens)
        right, pairs = ordered_pairs(self._model.network.conservative(output.totals), batch.items)
        accuracy = right / pairs if pairs else float("nan")
        return {"loss": float(loss.detach()), "accuracy": accuracy, "grad_norm": norm, "learning_rate": float(rate)}


@dataclass(frozen=True, slots=True)
class RankedResponse:
    """A response and its score."""

    response: str
    score: float


class RewardModelInference:
    """Scores with a saved reward model (in standard deviations of training answers) or a live one (raw)."""

    def __init__(self, model: str | Path | RewardModel) -> None:
        """`model` is the folder of a saved model, or a model in this process. Raises `UserError` for other folders."""
        if isinstance(model, RewardModel):
            self._scorer = RewardScorer(model.network, model.encoder, None)
        else:
            self._scorer = RewardScorer.load(resolve_model(str(model)))

    def batch_predict(self, pairs: Sequence[tuple[PromptLike, str]]) -> list[float]:
        """The score of each (prompt, response), in their order."""
        return self._scorer.score(_conversations(pairs))

    def rank_responses(self, prompt: PromptLike, responses: Sequence[str]) -> list[RankedResponse]:
        """The responses with their scores, best first; equal ones stay in their order."""
        scores = self.batch_predict([(prompt, response) for response in responses])
        ranked = [RankedResponse(response, score) for response, score in zip(responses, scores, strict=True)]
        return sorted(ranked, key=lambda item: -item.score)


def _relative_rate(step: int, warm: int, total: int) -> float:
    """Linear up to 1 in the first `warm` steps (the first of which already learns), then a half cosine down to 0."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


def _conversations(pairs: Sequence[tuple[PromptLike, str]]) -> list[Conversation]:
    return [(_messages(prompt), answer) for prompt, answer in pairs]


def _messages(prompt: PromptLike) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    found = []
    for message in prompt:
        if isinstance(message, Message):
            found.append(message)
        elif set(message) >= {"role", "content"}:
            found.append(Message(message["role"], message["content"]))
        else:
            raise UserError(f"a message of a prompt has keys {sorted(message)}; it needs role and content")
    return tuple(found)
