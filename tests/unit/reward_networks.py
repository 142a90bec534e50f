"""Reward networks of every architecture, small, for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config.offline import EnsembleConfig, GateConfig, SeparateConfig, WeightedConfig
from rlhf_ray.evidence import OVERALL, Label, Pair, Ranking, Rating, Thumb
from rlhf_ray.models.reward.build import make_reward_network
from rlhf_ray.models.reward.network import RewardNetwork
from rlhf_ray.models.reward.scorer import measure_scale, score_rows
from rlhf_ray.models.reward.spec import RatingScale, RewardSpec
from rlhf_ray.models.reward.text import Conversation, TextEncoder
from rlhf_ray.models.reward_model import RewardStats, load_tokenizer
from rlhf_ray.types import Message

ASK = (Message("system", "Be kind."), Message("user", "What is the sun?"))
TEXTS = ["A star.", "The sun is a star and the moon is not.", "", "I cannot tell you that, sorry.", "yes " * 40]
CONVERSATIONS: list[Conversation] = [(ASK[i % 2 :], text) for i, text in enumerate(TEXTS)]
TWO = ("helpful", "harmless")
SEPARATE, SHARED = SeparateConfig(type="separate"), SeparateConfig(type="separate", shared=True)
EXTRAS: dict[str, Any] = {"ties": True, "rating": RatingScale(), "thumbs": True}
MAKES: dict[str, dict[str, Any]] = {
    "plain": {},
    "joint": EXTRAS,
    "separate": {"architecture": SEPARATE},
    "shared": {"architecture": SHARED},
    "weights": {"objectives": TWO, "combine": WeightedConfig(weights={"helpful": 0.75, "harmless": 0.25})},
    "gate": {"objectives": TWO, "combine": GateConfig(type="gate"), **EXTRAS},
    "heads": {"ensemble": EnsembleConfig(members=3, sigma=0.5)},
    "models": {"ensemble": EnsembleConfig(members=2, of="models")},
    "all": {
        "architecture": SEPARATE, "objectives": TWO, "combine": GateConfig(type="gate"),
        "ensemble": EnsembleConfig(members=2, of="models"), **EXTRAS,
    },
}  # fmt: skip


def reward_spec(backbone: str, make: str = "plain", **changes: Any) -> RewardSpec:
    return RewardSpec.model_validate({"backbone": backbone, "max_tokens": 200, **MAKES[make], **changes})


def made(folder: Path, spec: RewardSpec, **settings: Any) -> tuple[RewardNetwork, TextEncoder]:
    return make_reward_network(folder, spec, **settings), TextEncoder(load_tokenizer(folder, spec.backbone), spec)


def stirred(network: RewardNetwork, seed: int = 1) -> RewardNetwork:
    """All trainable numbers moved a little, so that no two members, sides or objectives are alike."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=g)
    return network


def scale_of(network: RewardNetwork, encoder: TextEncoder) -> RewardStats:
    return measure_scale(network, score_rows(network, encoder(CONVERSATIONS), encoder.padding)[0])


def evidence(objectives: Sequence[str] = (OVERALL,)) -> list[Any]:
    """One item of every kind, a tie, and evidence on the whole."""

    def label(i: int) -> Label:
        return Label(f"row {i}", [*objectives, OVERALL][i % (len(objectives) + 1)])

    return [
        Pair(ASK, TEXTS[0], TEXTS[1], label(0), margin=0.5),
        Pair(ASK[1:], TEXTS[3], TEXTS[0], label(1), tie=True),
        Ranking(ASK, (TEXTS[1], TEXTS[0], TEXTS[3]), (1, 2, 2), label(2)),
        Rating(ASK, TEXTS[0], 4.0, label(3)),
        Rating(ASK, TEXTS[1], 1.0, label(4)),
        Thumb(ASK, TEXTS[3], True, label(5)),
        Thumb(ASK[1:], TEXTS[1], False, label(6)),
    ]
