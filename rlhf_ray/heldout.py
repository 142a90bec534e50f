"""Held-out prompts answered before and after training, with the same seeds, and what changed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.accounting import in_order
from rlhf_ray.data.batching import collate
from rlhf_ray.evaluation.text import distinct_n, paired_bootstrap, perplexity
from rlhf_ray.ports import Roles
from rlhf_ray.types import Prompt, Rollout

_EVALUATION = -1  # in place of a step: the same seeds every time


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over the held-out prompts."""

    rollouts: tuple[Rollout, ...]
    perplexity: float
    """Of the answers under the reference model: low means fluent in its eyes."""
    kl_per_token: float
    """Mean of policy minus reference log-probs over the sampled tokens (k1), nats."""


def evaluate(roles: Roles, prompts_P: Sequence[Prompt], pad_token_id: int) -> Evaluation:
    """Samples one answer a prompt, scores it, and measures it under policy and reference."""
    rollouts, _ = in_order(prompts_P, roles.reward.submit(roles.rollout.generate(prompts_P, 1, _EVALUATION))())
    batch = collate(rollouts, pad_token_id, "score", 0.0)
    policy, reference = roles.together(lambda: roles.policy.logprobs(batch), lambda: roles.reference.logprobs(batch))
    picked = reference[batch.response_mask]
    return Evaluation(
        tuple(rollouts),
        perplexity=perplexity([picked.tolist()]),
        kl_per_token=float((policy - reference)[batch.response_mask].mean()),
    )


def compare(before: Evaluation, after: Evaluation, seed: int) -> dict[str, object]:
    """The held-out part of `summary.json`: rewards with the paired interval of the gain, fluency, lengths."""
    old = {rollout.prompt.id: rollout.score.reward for rollout in before.rollouts if rollout.score}
    new = {rollout.prompt.id: rollout.score.reward for rollout in after.rollouts if rollout.score}
    shared = [prompt for prompt in old if prompt in new]
    gain, (low, high) = paired_bootstrap([old[p] for p in shared], [new[p] for p in shared], seed)
    out: dict[str, object] = {
        "reward_before": statistics.fmean(old.values()),
        "reward_after": statistics.fmean(new.values()),
        "reward_gain": gain,
        "reward_gain_ci95": [low, high],
        "kl_to_reference_per_token": after.kl_per_token,
        "heldout_prompts": len(shared),
    }
    for name, evaluation in (("before", before), ("after", after)):
        responses = [rollout.response_ids for rollout in evaluation.rollouts]
        out |= {
            f"perplexity_{name}": evaluation.perplexity,
            f"distinct2_{name}": distinct_n(responses, 2),
            f"truncated_{name}": statistics.fmean(rollout.truncated for rollout in evaluation.rollouts),
            f"length_{name}": statistics.fmean(map(len, responses)),
        }
    return out
