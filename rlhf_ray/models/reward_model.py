"""Reward models: a transformer backbone and one score, read at the last token of the rendered conversation.

Training (`rlhf_ray/offline/reward_worker.py`) and scoring share `encode`, so both see the same tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_ray.errors import UserError
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.strict import Strict
from rlhf_ray.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATS_FILE = "reward_stats.json"
Conversation = tuple[tuple[Message, ...], str]
"""The prompt's messages and the assistant's answer."""


class RewardStats(Strict):
    """Of the raw scores of training answers, chosen and rejected; scoring subtracts `mean` and divides by `std`."""

    mean: float
    std: float
    answers: int
    """How many answers the two figures come from."""
    max_tokens: int
    """The longest conversation seen in training; longer ones are cut on the left."""


def load_stats(folder: Path) -> RewardStats | None:
    """The statistics saved beside a reward model; None if it has none (a model that was not trained here)."""
    file = folder / STATS_FILE
    if not file.exists():
        return None
    try:
        stats = RewardStats.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not the statistics of a reward model ({error}); train the model again") from error
    if not (math.isfinite(stats.mean) and math.isfinite(stats.std) and stats.std > 0):
        raise UserError(f"{file}: mean {stats.mean} and std {stats.std} cannot standardise; train the model again")
    return stats


def read_reward_stats(folder: Path) -> tuple[float, float]:
    """`(mean, std)` of the raw scores in training; `(0, 1)` for a model that has no statistics."""
    stats = load_stats(folder)
    return (stats.mean, stats.std) if stats else (0.0, 1.0)


def make_reward_backbone(
    model_folder: Path, num_layers: int | None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """The causal model in `model_folder` as an untrained reward model: its first `num_layers` layers (None: all), its
    final norm and a new score head of one label.

    The head is drawn from N(0, 1 / (hidden size + 1)) (Stiennon et al. 2020, arXiv 2009.01325; Huang et al. 2024,
    arXiv 2403.17031, section 4), from `seed`. Raises `UserError` if the model has fewer layers or its tokenizer no
    padding token of its own: the last token of a text could then not be told from padding.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(model_folder)
    if num_layers is not None:
        if num_layers > config.num_hidden_layers:
            raise UserError(f"num_layers = {num_layers}: the model has only {config.num_hidden_layers} layers")
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    config.num_labels = 1
    config.pad_token_id = _padding(load_tokenizer(model_folder), model_folder)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        model_folder, config=config, dtype=dtype, use_safetensors=True
    )
    head = score_head(model, model_folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(head.shape, generator=generator) / math.sqrt(head.shape[1] + 1)
        head.copy_(drawn.to(head.dtype))
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; a `UserError` if it has no chat template, which says how a conversation is scored."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template; a reward model needs a chat model's folder")
    return tokenizer


def score_head(model: PreTrainedModel, folder: Path) -> Tensor:
    """The weight `[1, H]` of the model's linear score head; a `UserError` for an architecture that scores otherwise."""
    weight = getattr(getattr(model, "score", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[0] != 1:
        raise UserError(f"{folder}: not a reward model with one linear score head on a causal backbone")
    return weight


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_tokens: int
) -> tuple[list[list[int]], int]:
    """The rendered chat template of each conversation as token ids, and how many were longer than `max_tokens`.

    Those lose their beginning, so that the answer stays whole as long as it fits. Control tokens spelled out in a text
    are broken by a space: an answer must not be able to forge a turn and have that scored.
    """
    texts = [
        tokenizer.apply_chat_template(
            [_disarmed(message, tokenizer).as_dict() for message in (*prompt, Message("assistant", answer))],
            tokenize=False,
            add_generation_prompt=False,
        )
        for prompt, answer in conversations
    ]
    if not texts:
        return [], 0
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [row[-max_tokens:] for row in rows], sum(len(row) > max_tokens for row in rows)


class RewardModel:
    """A frozen reward model that scores conversations. `standardised` is False for a model without statistics, whose
    scores stay raw; `truncated` counts the conversations that were cut so far."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stats: RewardStats | None, head: Tensor
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._head = head.detach().float()
        self._mean, self._std = (stats.mean, stats.std) if stats else (0.0, 1.0)
        self._max_tokens = stats.max_tokens if stats else int(model.config.max_position_embeddings)
        self.standardised = stats is not None
        self.truncated = 0

    @classmethod
    def load(cls, folder: Path, dtype: str = "auto") -> RewardModel:
        """The reward model in `folder`: safetensors of one label, tokenizer, chat template and `reward_stats.json`.

        Raises `UserError` if the folder holds something else.
        """
        from transformers import AutoModelForSequenceClassification

        stats, tokenizer = load_stats(folder), load_tokenizer(folder)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=compute_dtype(dtype), use_safetensors=True, output_loading_info=True
        )
        score_head(model, folder)
        if "score.weight" in found["missing_keys"]:
            raise UserError(f"{folder}: a language model without a trained score head; train a reward model from it")
        model = model.to(device()).eval()
        return cls(model, tokenizer, stats, model.score.weight)

    def score(self, conversations: Sequence[Conversation], token_budget: int = 4096) -> list[float]:
        """(raw score - mean) / std of each conversation, in their order; `token_budget` bounds a forward pass."""
        return [(raw - self._mean) / self._std for raw in self.raw_scores(conversations, token_budget)]

    def raw_scores(self, conversations: Sequence[Conversation], token_budget: int = 4096) -> list[float]:
        """The head's output at the last token of each conversation, in their order."""
        rows, truncated = encode(self._tokenizer, conversations, self._max_tokens)
        self.truncated += truncated
        scores = [0.0] * len(rows)
        for chunk in _chunks([len(row) for row in rows], token_budget):
            for index, value in zip(chunk, self._forward([rows[i] for i in chunk]), strict=True):
                scores[index] = value
        return scores

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> list[float]:
        """Raw scores of `rows`, padded on the right and read at the last attended token.

        The attention mask says where a text ends; the padding token's id does not, because a text may contain it.
        """
        lengths = torch.tensor([len(row) for row in rows])
        token_ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = torch.tensor(row)
        mask = torch.arange(token_ids.shape[1]) < lengths[:, None]
        where = self._head.device
        hidden = self._model.base_model(
            input_ids=token_ids.to(where), attention_mask=mask.long().to(where), use_cache=False
        ).last_hidden_state
        last = hidden[torch.arange(len(rows), device=where), lengths.to(where) - 1].float()
        values: list[float] = (last @ self._head[0]).tolist()
        return values


def _chunks(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices sorted by length, longest first, in chunks of at most `token_budget` tokens, padding included."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def _disarmed(message: Message, tokenizer: PreTrainedTokenizerBase) -> Message:
    content = message.content
    for spelling in tokenizer.all_special_tokens:
        content = content.replace(spelling, f"{spelling[0]} {spelling[1:]}")
    return Message(message.role, content)


def _padding(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """The id of the padding token, which must differ from the end of sequence."""
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int) or pad == tokenizer.eos_token_id:
        raise UserError(
            f"{folder}: the tokenizer's pad_token is missing or equal to its eos_token, so the end of a text cannot be "
            "told from padding; set pad_token in tokenizer_config.json to another special token"
        )
    return pad


def save_stats(folder: Path, stats: RewardStats) -> None:
    """Writes `stats` beside the model in `folder`."""
    (folder / STATS_FILE).write_text(json.dumps(stats.model_dump(), indent=2) + "\n", encoding="utf-8")
