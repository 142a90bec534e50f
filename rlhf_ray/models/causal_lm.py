"""The policy and the reference: a causal language model that answers with log-probabilities of response tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf_ray.algorithms.ops import selected_logprobs_and_entropy
from rlhf_ray.config import LoraConfig
from rlhf_ray.models.lean import import_lean


class CausalLM(nn.Module):
    """Wraps a Hugging Face causal model. The forward pass goes through this module, so DeepSpeed's hooks see it all."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        response_mask: Bool[Tensor, "B T"],
        temperature: float | None = None,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probabilities and entropies of `logits / temperature` (the sampling temperature if none is given),
        `[B, T]` float32, aligned to `token_ids`; 0 outside `response_mask`.

        The language-model head runs on the positions *before* response tokens only: in a small model it is a fifth of
        the arithmetic, and its logits are the largest tensor.
        """
        scored = response_mask[:, 1:]
        logits = self._raw_logits(token_ids, attention_mask, scored)
        heat = temperature or self.temperature
        picked, spread = selected_logprobs_and_entropy(logits, token_ids[:, 1:][scored], heat)
        logprobs = torch.zeros(token_ids.shape, dtype=torch.float32, device=token_ids.device)
        entropies = torch.zeros_like(logprobs)
        positions = torch.zeros_like(response_mask)
        positions[:, 1:] = scored
        return logprobs.masked_scatter(positions, picked), entropies.masked_scatter(positions, spread)

    def logits(
        self,
        token_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        response_mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "N V"]:
        """`logits / temperature` from which each response token was sampled, row by row."""
        return self._raw_logits(token_ids, attention_mask, response_mask[:, 1:]) / self.temperature

    def _raw_logits(self, token_ids: Tensor, attention_mask: Tensor, scored: Tensor) -> Tensor:
        causal = unwrapped(self.model)
        hidden = causal.get_decoder()(input_ids=token_ids, attention_mask=attention_mask.long(), use_cache=False)  # type: ignore[operator]  # transformers' method
        logits: Tensor = causal.get_output_embeddings()(hidden.last_hidden_state[:, :-1][scored])  # type: ignore[operator]  # likewise
        return logits


def load_causal_lm(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model in `folder`, in evaluation mode (no dropout in any log-probability), safetensors only."""
    import_lean()
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.eval()


def add_lora(model: nn.Module, lora: LoraConfig) -> nn.Module:
    """`model` with trainable adapters on all linear layers of its blocks; everything else is frozen."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    wanted = PeftLoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear")
    adapted: nn.Module = get_peft_model(model, wanted)
    return adapted


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a peft wrapper, or `model` itself. Adapters stay in effect: they live inside."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model
