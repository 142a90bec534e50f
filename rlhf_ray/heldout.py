"""Held-out prompts answered before and after training, with the same seeds, and what changed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rlhf_ray.accounting import in_order
from rlhf_ray.data.batching import collate
from rlhf_ray.evaluation.text import distinct_n, paired_bootstrap, perplexity
from rlhf_ray.ports import Roles
from rlhf_ray.strict import Strict
from rlhf_ray.types import Prompt, Rollout

_EVALUATION = -1  # in place of a step: the same seeds every time


class Evaluation(Strict):
    """One pass over the held-out prompts."""

    rewards: dict[str, float]
    """By prompt id; answers that could not be scored are left out."""
    perplexity: float
    """Of the answers under the reference model at temperature 1: low means fluent in its eyes."""
    kl_per_token: float
    """Mean of policy minus reference log-probs over the sampled tokens (k1), nats."""
    distinct2: float
    truncated: float
    """Fraction of answers that the token limit cut off."""
    length: float
    """Mean tokens of an answer."""


def evaluate(roles: Roles, prompts_P: Sequence[Prompt], pad_token_id: int) -> tuple[Evaluation, list[Rollout]]:
    """Samples one answer a prompt, scores it, and measures it under policy and reference."""
    rollouts, _ = in_order(prompts_P, roles.reward.submit(roles.rollout.generate(prompts_P, 1, _EVALUATION))())
    batch = collate(rollouts, pad_token_id, "score", 0.0)
    policy, reference, plain = roles.together(
        lambda: roles.policy.logprobs(batch),
        lambda: roles.reference.logprobs(batch),
        lambda: roles.reference.logprobs(batch, temperature=1.0),
    )
    responses = [rollout.response_ids for rollout in rollouts]
    measured = Evaluation(
        rewards={rollout.prompt.id: rollout.score.reward for rollout in rollouts if rollout.score},
        perplexity=perplexity([plain[batch.response_mask].tolist()]),
        kl_per_token=float((policy - reference)[batch.response_mask].mean()),
        distinct2=distinct_n(responses, 2),
        truncated=statistics.fmean(rollout.truncated for rollout in rollouts),
        length=statistics.fmean(map(len, responses)),
    )
    return measured, rollouts


def compare(before: Evaluation, after: Evaluation, seed: int) -> dict[str, object]:
    """The held-out part of `summary.json`: rewards with the paired interval of the gain, fluency, lengths."""
    shared = [prompt for prompt in before.rewards if prompt in after.rewards]
    old, new = [before.rewards[p] for p in shared], [after.rewards[p] for p in shared]
    gain, (low, high) = paired_bootstrap(old, new, seed)
    out: dict[str, object] = {
        "reward_before": statistics.fmean(old),
        "reward_after": statistics.fmean(new),
        "reward_gain": gain,
        "reward_gain_ci95": [low, high],
        "kl_to_reference_per_token": after.kl_per_token,
        "heldout_prompts": len(shared),
    }
    for name, evaluation in (("before", before), ("after", after)):
        for measure in ("perplexity", "distinct2", "truncated", "length"):
            out[f"{measure}_{name}"] = getattr(evaluation, measure)
    return out
