"""Slow reference implementations from the definitions: plain loops over floats, nothing shared with the package.

One namespace for those of all themes, each in a file of its own. Rows are lists of floats and masks lists of 0/1.
Entries outside a mask are never read, so they may be NaN; results are 0.0 there.
"""

from rlhf_ray.conformance.advantages import (
    advantages,
    group_advantages,
    lambda_returns,
    placed_reward,
    returns_to_go,
    whitened,
)
from rlhf_ray.conformance.controllers import adaptive_coefs, gap_betas, predicted_errors, prices
from rlhf_ray.conformance.evidence import (
    comparison_probabilities,
    level_probability,
    ranking_probability,
    thumb_probability,
)
from rlhf_ray.conformance.kl import (
    expected_return,
    expected_return_gradient,
    kl_divergence,
    kl_estimate,
    kl_gradient,
    sequence_logprobs,
    sequences,
)
from rlhf_ray.conformance.logprobs import entropy, log_softmax, token_logprobs, top_p_log_softmax
from rlhf_ray.conformance.losses import (
    aggregated,
    answer_log_ratio,
    clipped_weight_gradient,
    importance_weights,
    pair_loss,
    policy_token_gradient,
    policy_token_loss,
    sequence_policy_loss,
    smoothed_pair_loss,
    token_mean,
    value_token_loss,
)
from rlhf_ray.conformance.trust_region import fisher_matrix, line_search, mean_kl, natural_step, softmax

__all__ = [
    "adaptive_coefs",
    "advantages",
    "aggregated",
    "answer_log_ratio",
    "clipped_weight_gradient",
    "comparison_probabilities",
    "entropy",
    "expected_return",
    "expected_return_gradient",
    "fisher_matrix",
    "gap_betas",
    "group_advantages",
    "importance_weights",
    "kl_divergence",
    "kl_estimate",
    "kl_gradient",
    "lambda_returns",
    "level_probability",
    "line_search",
    "log_softmax",
    "mean_kl",
    "natural_step",
    "pair_loss",
    "placed_reward",
    "policy_token_gradient",
    "policy_token_loss",
    "predicted_errors",
    "prices",
    "ranking_probability",
    "returns_to_go",
    "sequence_logprobs",
    "sequence_policy_loss",
    "sequences",
    "smoothed_pair_loss",
    "softmax",
    "thumb_probability",
    "token_logprobs",
    "token_mean",
    "top_p_log_softmax",
    "value_token_loss",
    "whitened",
]
