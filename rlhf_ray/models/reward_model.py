"""What lies beside every reward model on disk, its statistics and its tokenizer; and the plain one, untrained.

Networks, losses' carriers, files and scoring of all architectures are in `models/reward/`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from rlhf_ray.errors import UserError
from rlhf_ray.models.lean import import_lean
from rlhf_ray.strict import Strict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATS_FILE = "reward_stats.json"


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


def load_tokenizer(folder: Path, backbone: Literal["decoder", "encoder"] = "decoder") -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; a `UserError` if a decoder's has no chat template, which says how a conversation is
    read."""
    import_lean()
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if backbone == "decoder" and not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template; a reward model needs a chat model's folder")
    return tokenizer


def score_head(model: PreTrainedModel, folder: Path) -> Tensor:
    """The weight `[1, H]` of the model's linear score head; a `UserError` for an architecture that scores otherwise."""
    weight = getattr(getattr(model, "score", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[0] != 1:
        raise UserError(f"{folder}: not a reward model with one linear score head on a causal backbone")
    return weight


def own_padding(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
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
