"""The implicit reward of a trained policy on held-out pairs, from the saved folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.algorithms.ops import full_kl
from rlhf_ray.config.offline import CPOConfig, DPOConfig, KTOConfig, ORPOConfig
from rlhf_ray.evaluation.intervals import wilson_interval
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.device import compute_dtype, device

KL_PAIRS = 16
"""Held-out pairs whose answers the KL is measured on; it needs whole distributions."""
MOST_PAIRS = 1000
"""Measured at most: enough for an interval of 3 %, and scoring a large set on one rank is slow."""
_TOKENS = 4096


def implicit_accuracy(
    method: DPOConfig | KTOConfig | ORPOConfig | CPOConfig, policy: Path, reference: Path, pairs: Any
) -> dict[str, object]:
    """`heldout_accuracy` with its 95 % interval and `pairs_heldout`: how often the chosen answer has the higher
    implicit reward (equal ones count half).

    That is `log(policy/reference)` summed over the answer (its mean per token where the loss uses that), and for
    methods without a reference the mean log-probability per token.
    """
    rows = [pairs[i] for i in range(min(len(pairs), MOST_PAIRS))]
    free = isinstance(method, ORPOConfig | CPOConfig) or (isinstance(method, DPOConfig) and method.reference == "none")
    per_token = free or (isinstance(method, DPOConfig) and method.losses[0] in ("ipo", "sigmoid_norm"))
    rewards = answer_logprobs(policy, rows)
    if not free:
        rewards = rewards - answer_logprobs(reference, rows)
    if per_token:
        rewards = rewards / torch.tensor([[len(row[name]) for name in ("chosen_ids", "rejected_ids")] for row in rows])
    margins = rewards[:, 0] - rewards[:, 1]
    right = float((margins > 0).sum() + 0.5 * (margins == 0).sum())
    return {
        "heldout_accuracy": right / len(rows),
        "heldout_accuracy_ci95": [round(bound, 4) for bound in wilson_interval(right, len(rows))],
        "heldout_margin": float(margins.mean()),
        "pairs_heldout": len(rows),
    }


@torch.inference_mode()
def answer_kl(policy: Path, reference: Path, pairs: Any) -> float:
    """The exact KL(policy || reference) of the next-token distributions, summed over each answer's tokens: the mean
    over the answers of up to `KL_PAIRS` pairs, nats per sequence."""
    models = [load_causal_lm(folder, compute_dtype("auto")).to(device()) for folder in (policy, reference)]
    rows = [pairs[i] for i in range(min(len(pairs), KL_PAIRS))]
    texts = [(row["prompt_ids"], row[name]) for row in rows for name in ("chosen_ids", "rejected_ids")]
    total = 0.0
    for prompt, answer in texts:
        ids = torch.tensor([[*prompt, *answer]], device=device())
        logits = [model(input_ids=ids).logits[0, len(prompt) - 1 : -1] for model in models]
        total += float(full_kl(logits[0], logits[1]).sum())
    return total / len(texts)


@torch.inference_mode()
def answer_logprobs(folder: Path, rows: Sequence[Mapping[str, list[int]]]) -> Tensor:
    """`log p(answer | prompt)`, summed over tokens, of the chosen and the rejected answer of each row: `[N, 2]`."""
    model = CausalLM(load_causal_lm(folder, compute_dtype("auto")), temperature=1.0).to(device())
    texts = [(row["prompt_ids"], row[name]) for row in rows for name in ("chosen_ids", "rejected_ids")]
    order = sorted(range(len(texts)), key=lambda i: -sum(map(len, texts[i])))
    out = torch.zeros(len(texts))
    start = 0
    while start < len(order):
        longest = sum(map(len, texts[order[start]]))
        chunk = order[start : start + max(1, _TOKENS // longest)]
        ids = torch.zeros(len(chunk), longest, dtype=torch.long)
        attended, answered = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for line, index in enumerate(chunk):
            prompt, answer = texts[index]
            ids[line, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            attended[line, : len(prompt) + len(answer)] = True
            answered[line, len(prompt) : len(prompt) + len(answer)] = True
        logprobs, _ = model(ids.to(device()), attended.to(device()), answered.to(device()))
        out[chunk] = logprobs.sum(dim=1).cpu()
        start += len(chunk)
    return out.view(-1, 2)
