"""The critic: a transformer backbone with a value head that stays in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf_ray.models.lean import import_lean


class ValueHead(nn.Module):
    """A linear map from hidden states to one value, always in float32.

    Not an `nn.Linear`, because DeepSpeed's autocast communicates the weights of Linear modules in low precision.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    def forward(self, hidden: Float[Tensor, "... H"]) -> Float[Tensor, "..."]:
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight + self.bias


class ValueModel(nn.Module):
    """`V(tokens < t)` for every token t."""

    def __init__(self, backbone: nn.Module, head: ValueHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, token_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Values, `[B, T]` float32, aligned to `token_ids`: `values[b, t]` has seen the tokens before t only."""
        hidden = self.backbone(input_ids=token_ids, attention_mask=attention_mask.long(), use_cache=False)
        values = self.head(hidden.last_hidden_state)
        return torch.nn.functional.pad(values[:, :-1], (1, 0))


def load_value_model(folder: Path, init: str) -> ValueModel:
    """A critic from a reward model's folder (`init="reward"`: backbone, head and its scaling) or from a policy's
    (`init="policy"`: backbone and a zero head).

    Raises `UserError` for a reward model that is not one linear head on a decoder.
    """
    import_lean()
    from transformers import AutoModel, AutoModelForSequenceClassification

    if init == "policy":
        backbone = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return ValueModel(backbone.eval(), ValueHead(backbone.config.hidden_size))

    from rlhf_ray.models.folder import check_critic_init
    from rlhf_ray.models.reward_model import read_reward_stats

    check_critic_init(folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    head = ValueHead(classifier.config.hidden_size)
    mean, std = read_reward_stats(folder)
    with torch.no_grad():
        head.weight.copy_(classifier.score.weight[0].float() / std)
        head.bias.fill_(-mean / std)
    return ValueModel(classifier.base_model.eval(), head)
