"""The heads of a reward model and what ties its scores to judgements. All of it is, and stays, in float32.

None is an `nn.Linear`, because DeepSpeed's autocast communicates the weights of Linear modules in low precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_ray.models.reward.spec import RewardSpec

MIN_GAP = 1e-3
"""Between two thresholds, lest a level in between becomes impossible and its loss infinite."""


class JointHeads(nn.Module):
    """A linear map to one score for each of M members and O objectives, without a bias: thresholds and statistics
    take up every shift.

    Drawn from N(0, 1 / (hidden size + 1)) (Stiennon et al. 2020, arXiv 2009.01325; Huang et al. 2024, arXiv
    2403.17031, section 4), each member from a seed of its own.
    """

    def __init__(self, members: int, objectives: int, hidden_size: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_drawn(members, (objectives, hidden_size), hidden_size + 1, seed))

    def forward(
        self, answers: Float[Tensor, "N B H"], prompts: Float[Tensor, "N B H"] | None
    ) -> Float[Tensor, "N M O"]:
        """Scores from B = 1 representation that all members share, or B = M."""
        with torch.autocast(answers.device.type, enabled=False):
            return torch.einsum("nmh,moh->nmo", answers.float().expand(-1, len(self.weight), -1), self.weight)


class SeparateHeads(nn.Module):
    """One hidden layer on [u, v, u * v, |u - v|], u the prompt's and v the answer's representation, each normalized
    to mean 0 and variance 1 over its features; then a linear map to the scores. Drawn like `JointHeads`."""

    def __init__(self, members: int, objectives: int, hidden_size: int, seed: int) -> None:
        super().__init__()
        inner = _drawn(members, (hidden_size, 4 * hidden_size), 4 * hidden_size, seed)
        self.inner = nn.Parameter(inner)
        self.bias = nn.Parameter(torch.zeros(members, hidden_size))
        self.weight = nn.Parameter(_drawn(members, (objectives, hidden_size), hidden_size + 1, seed + 1))

    def forward(
        self, answers: Float[Tensor, "N B H"], prompts: Float[Tensor, "N B H"] | None
    ) -> Float[Tensor, "N M O"]:
        """Scores from B = 1 representation of each side that all members share, or B = M."""
        if prompts is None:
            raise ValueError("prompt and answer are read apart, so the prompts' representation is needed")
        with torch.autocast(answers.device.type, enabled=False):
            shape = answers.shape[-1:]
            u = nn.functional.layer_norm(prompts.float(), shape)
            v = nn.functional.layer_norm(answers.float(), shape)
            both = torch.cat([u, v, u * v, (u - v).abs()], dim=-1).expand(-1, len(self.weight), -1)
            hidden = torch.tanh(torch.einsum("nmf,mhf->nmh", both, self.inner) + self.bias)
            return torch.einsum("nmh,moh->nmo", hidden, self.weight)


class Gate(nn.Module):
    """Weights of the objectives from the prompt's representation; all equal before training."""

    def __init__(self, members: int, objectives: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(members, objectives, hidden_size))
        self.bias = nn.Parameter(torch.zeros(members, objectives))

    def forward(self, prompts: Float[Tensor, "N B H"]) -> Float[Tensor, "N M O"]:
        """A softmax over objectives for each member."""
        with torch.autocast(prompts.device.type, enabled=False):
            wide = nn.functional.layer_norm(prompts.float(), prompts.shape[-1:]).expand(-1, len(self.weight), -1)
            return torch.softmax(torch.einsum("nmh,moh->nmo", wide, self.weight) + self.bias, dim=-1)


class LinkHead(nn.Module):
    """The learned numbers of `evidence_loss.Links`, of which only those exist that the training data need.

    Thresholds start where all levels are equally probable at score 0, nu at 1. A separate module with a forward pass of
    its own, because under ZeRO-3 parameters are whole only inside one.
    """

    def __init__(self, spec: RewardSpec) -> None:
        super().__init__()
        self.log_nu = nn.Parameter(torch.zeros(1)) if spec.ties else None
        self.thumb_bias = nn.Parameter(torch.zeros(spec.scales)) if spec.thumbs else None
        self.first: nn.Parameter | None = None
        self.gaps: nn.Parameter | None = None
        if spec.rating is not None:
            start = _even_thresholds(spec.rating.levels)
            gaps = torch.tensor([b - a - MIN_GAP for a, b in pairwise(start)])
            self.first = nn.Parameter(torch.full((spec.scales, 1), start[0]))
            self.gaps = nn.Parameter(torch.log(torch.expm1(gaps)).repeat(spec.scales, 1))

    def forward(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """log_nu `[]`, thresholds `[R, T]` and thumb bias `[R]`, None where the model has none. New tensors, never the
        parameters themselves; a tuple, because DeepSpeed looks for tensors in tuples only."""
        thresholds = None
        if self.first is not None and self.gaps is not None:
            gaps = nn.functional.softplus(self.gaps.float()) + MIN_GAP
            thresholds = torch.cat([self.first.float(), self.first.float() + gaps.cumsum(dim=1)], dim=1)
        log_nu = None if self.log_nu is None else self.log_nu.float().sum()
        return log_nu, thresholds, None if self.thumb_bias is None else self.thumb_bias.float().clone()


def _even_thresholds(levels: int) -> Sequence[float]:
    return [math.log(k / (levels - k)) for k in range(1, levels)]


def _drawn(members: int, shape: tuple[int, int], fan_in: int, seed: int) -> Float[Tensor, "M rows columns"]:
    """Normal numbers of variance 1 / `fan_in`, each member's from another seed."""
    generators = (torch.Generator().manual_seed(seed + 1000 * member) for member in range(members))
    return torch.stack([torch.randn(shape, generator=g) / math.sqrt(fan_in) for g in generators])
