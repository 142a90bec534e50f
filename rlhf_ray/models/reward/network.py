"""The network of a reward model: backbones, heads, and from their scores to one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf_ray.algorithms.evidence_loss import Links
from rlhf_ray.models.causal_lm import unwrapped
from rlhf_ray.models.reward.heads import Gate, JointHeads, LinkHead, SeparateHeads
from rlhf_ray.models.reward.spec import RewardSpec


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """N answers as the backbones read them. Rows are padded on the right.

    Joint: `token_ids` are prompt and answer, of which the first `prompt_lengths` are the prompt's. Separate: they are
    the answer alone, and the prompts, each once, are the rows of `prompt_ids`, which `prompt_index` points to.
    """

    token_ids: Int[Tensor, "N T"]
    attention_mask: Bool[Tensor, "N T"]
    prompt_lengths: Int[Tensor, " N"]
    prompt_ids: Int[Tensor, "P S"] | None = None
    prompt_mask: Bool[Tensor, "P S"] | None = None
    prompt_index: Int[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum()) + (0 if self.prompt_mask is None else int(self.prompt_mask.sum()))

    def to(self, device: torch.device) -> TokenBatch:
        """The same on `device`."""
        tensors = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return TokenBatch(**{name: value.to(device) for name, value in tensors.items() if value is not None})


class RewardOutput(NamedTuple):
    """What a forward pass gives. A tuple, because DeepSpeed looks for tensors in tuples only."""

    scores: Float[Tensor, "N M O"]
    totals: Float[Tensor, "N M"]
    """The weighted sum of the objectives, by fixed weights or by the gate."""
    gate: Float[Tensor, "N M O"] | None
    log_nu: Float[Tensor, ""] | None
    thresholds: Float[Tensor, "R T"] | None
    thumb_bias: Float[Tensor, " R"] | None

    @property
    def links(self) -> Links:
        """The last three, as the losses take them."""
        return Links(self.log_nu, self.thresholds, self.thumb_bias)


class RewardNetwork(nn.Module):
    """Scores of M ensemble members on O objectives.

    With `ensemble.of: heads` the members share the backbone and cost next to nothing. With `models` each has its own:
    memory and time are M times those of one model (twice that, if prompt and answer have backbones of their own).
    """

    def __init__(self, spec: RewardSpec, backbones: Sequence[nn.Module], seed: int = 0) -> None:
        """`backbones`: `spec.backbones` of them, then the prompts' own, `spec.prompt_backbones`."""
        super().__init__()
        self.spec = spec
        self.backbones = nn.ModuleList(backbones[: spec.backbones])
        self.prompt_backbones = nn.ModuleList(backbones[spec.backbones :])
        hidden_size = int(unwrapped(backbones[0]).config.hidden_size)  # type: ignore[union-attr, arg-type]  # a transformers config
        kind = SeparateHeads if spec.separate else JointHeads
        self.heads = kind(spec.members, len(spec.objectives), hidden_size, seed)
        self.gate = Gate(spec.members, len(spec.objectives), hidden_size) if spec.gated else None
        self.link = LinkHead(spec)
        self.weights: Tensor
        self.offsets: Tensor
        self.register_buffer("weights", torch.tensor(spec.weights()), persistent=False)
        self.register_buffer("offsets", torch.zeros(spec.members))

    def forward(self, batch: TokenBatch) -> RewardOutput:
        """Scores, totals, gate and links, float32."""
        answers, prompts = self._separate(batch) if self.spec.separate else self._joint(batch)
        scores = self.heads(answers, prompts)
        gate = self.gate(prompts) if self.gate is not None else None
        totals = (scores * (self.weights if gate is None else gate)).sum(dim=-1) - self.offsets
        return RewardOutput(scores, totals, gate, *self.link())

    def conservative(self, totals: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
        """The members' mean minus `sigma` of their standard deviations (Coste et al. 2023, arXiv 2310.02743)."""
        return totals.mean(dim=1) - self.spec.ensemble.sigma * uncertainty(totals)

    @torch.no_grad()
    def align(self, totals: Float[Tensor, "N M"]) -> None:
        """Gives all members the same mean over `totals`, those of a sample of answers.

        Pairs and rankings leave each member's zero free, and how far those lie apart says nothing about an answer.
        """
        if self.spec.members > 1:
            self.offsets += (totals.mean(dim=0) - totals.mean()).to(self.offsets.device)

    def _joint(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """`[N, B, H]` of the whole conversations, and of the prompts inside them if a gate wants them.

        A decoder's prompt is its last prompt token, which has not seen the answer; an encoder's the mean over the
        prompt's tokens, which have.
        """
        places = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device)
        # A prompt that was cut away altogether leaves its place to the first token of the answer.
        inside = places < batch.prompt_lengths.clamp(min=1)[:, None]
        hidden = [self._hidden(part, batch.token_ids, batch.attention_mask, inside) for part in self.backbones]
        whole = torch.stack([self._pool(part, batch.attention_mask) for part in hidden], dim=1)
        if self.gate is None:
            return whole, None
        return whole, torch.stack([self._pool(part, inside) for part in hidden], dim=1)

    def _separate(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """`[N, B, H]` of the answers, and of their prompts."""
        if batch.prompt_ids is None or batch.prompt_mask is None or batch.prompt_index is None:
            raise ValueError("prompt and answer are read apart, but the batch has no prompts of its own")
        sides = self.prompt_backbones if len(self.prompt_backbones) else self.backbones
        answers = [
            self._pool(self._hidden(backbone, batch.token_ids, batch.attention_mask), batch.attention_mask)
            for backbone in self.backbones
        ]
        prompts = [
            self._pool(self._hidden(backbone, batch.prompt_ids, batch.prompt_mask), batch.prompt_mask)
            for backbone in sides
        ]
        return torch.stack(answers, dim=1), torch.stack(prompts, dim=1)[batch.prompt_index]

    def _hidden(
        self,
        backbone: nn.Module,
        token_ids: Int[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        first_part: Bool[Tensor, "N T"] | None = None,
    ) -> Float[Tensor, "N T H"]:
        """The last layer. `first_part` is the first text of a sentence pair, where an encoder tells the two apart."""
        more: dict[str, object] = {"use_cache": False} if self.spec.backbone == "decoder" else {}
        types = getattr(unwrapped(backbone).config, "type_vocab_size", 0)
        if self.spec.backbone == "encoder" and first_part is not None and types > 1:
            more["token_type_ids"] = (mask & ~first_part).long()
        hidden: Tensor = backbone(input_ids=token_ids, attention_mask=mask.long(), **more).last_hidden_state
        return hidden

    def _pool(self, hidden: Float[Tensor, "N T H"], inside: Bool[Tensor, "N T"]) -> Float[Tensor, "N H"]:
        """The representation of the tokens `inside`, which begin every row, in float32.

        The mask says where a text ends; the padding token's id does not, because a text may contain it.
        """
        lengths = inside.sum(dim=1)
        if self.spec.backbone == "decoder":
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
        return torch.where(inside[..., None], hidden.float(), 0.0).sum(dim=1) / lengths[:, None]


def uncertainty(totals: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """The members' standard deviation, dividing by M; 0 for a single member."""
    return totals.std(dim=1, correction=0)
