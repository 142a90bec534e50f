"""Small runs and batches that several tests share."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config import RunConfig
from rlhf_ray.types import Batch


def run_config(model: Path, prompts: Path | str = "demo", /, **changes: Any) -> RunConfig:
    """A valid run of the model in `model` with a function reward; `changes` are laid over its sections."""
    base: dict[str, Any] = {
        "name": "test",
        "model": {"path": str(model)},
        "prompts": {"path": str(prompts), "max_prompt_tokens": 256},
        "policy": {"learning_rate": 1e-3},
        "critic": {"init": "policy", "learning_rate": 1e-3},
        "reward": {"sources": [{"type": "function", "path": "tests.builders:share_of_vowels"}]},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 12, "kv_cache_gib": 0.25, "max_concurrent": 16},
        "train": {"num_steps": 2, "prompts_per_step": 4, "checkpoint_every": 1, "deadline_s": 180},
    }
    for section, values in changes.items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(base)


def share_of_vowels(prompt: str, response: str, reference: str | None) -> float:
    """The share of vowels among the characters of a response: a toy reward that a tiny model can learn."""
    return sum(character in "aeiou" for character in response) / max(1, len(response))


def interruptible() -> None:
    """For a process that is to be stopped with Ctrl-C. What a shell runs in the background ignores it, children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def random_batch(rows: int, width: int, vocabulary: int, seed: int = 0) -> Batch:
    """A complete batch with prompts and responses of random lengths."""
    g = torch.Generator().manual_seed(seed)
    prompt = torch.randint(2, width // 2, (rows, 1), generator=g)
    length = prompt + torch.randint(1, width // 2, (rows, 1), generator=g)
    place = torch.arange(width).expand(rows, -1)
    attention, response = place < length, (place >= prompt) & (place < length)

    def noise(scale: float) -> torch.Tensor:
        return torch.where(response, scale * torch.randn(rows, width, generator=g), 0.0)

    return Batch(
        token_ids=torch.where(attention, torch.randint(3, vocabulary, (rows, width), generator=g), 0),
        attention_mask=attention,
        response_mask=response,
        loss_mask=response,
        rollout_logprobs=noise(0.1) - 6.0 * response,
        rewards=torch.randn(rows, generator=g),
        truncated=torch.zeros(rows, dtype=torch.bool),
        old_logprobs=noise(0.1) - 6.0 * response,
        ref_logprobs=noise(0.1) - 6.0 * response,
        values=noise(1.0),
        advantages=noise(1.0),
        returns=noise(1.0),
    )
