"""Slow oracles of RLHF arithmetic, and checks that hold any implementation to them.

    from rlhf_ray.conformance import check_advantages

    check_advantages(my_gae)  # AssertionError with the first case that differs

The checks hand over and take NumPy arrays in float64; wrap a function of another library in two lines. Nothing here
shares code with the rest of the package. The oracles are in `oracles`, by theme in a file each.
"""

from rlhf_ray.conformance.batch_checks import (
    check_dynamic_sampling,
    check_resume,
    check_returns_to_go,
    check_reward_placement,
    check_split_invariance,
    check_token_logprobs,
    check_truncation,
    check_weight_checksum,
)
from rlhf_ray.conformance.checks import (
    check_advantages,
    check_conjugate_gradient,
    check_group_advantages,
    check_kl_penalty_gradient,
    check_pair_loss,
    check_policy_loss,
    check_selected_logprobs,
    check_top_p_logprobs,
    check_whitening,
)
from rlhf_ray.conformance.loss_checks import (
    check_aggregation,
    check_clipped_weight_gradient,
    check_comparison_loss,
    check_policy_gradient,
    check_ranking_loss,
    check_rating_loss,
    check_sequence_policy_loss,
    check_smoothed_pair_loss,
    check_value_loss,
)
from rlhf_ray.conformance.policy_checks import (
    check_kl_controller,
    check_kl_estimator,
    check_kl_target,
    check_sequence_gradient,
    check_trust_region_step,
)

__all__ = [
    "check_advantages",
    "check_aggregation",
    "check_clipped_weight_gradient",
    "check_comparison_loss",
    "check_conjugate_gradient",
    "check_dynamic_sampling",
    "check_group_advantages",
    "check_kl_controller",
    "check_kl_estimator",
    "check_kl_penalty_gradient",
    "check_kl_target",
    "check_pair_loss",
    "check_policy_gradient",
    "check_policy_loss",
    "check_ranking_loss",
    "check_rating_loss",
    "check_resume",
    "check_returns_to_go",
    "check_reward_placement",
    "check_selected_logprobs",
    "check_sequence_gradient",
    "check_sequence_policy_loss",
    "check_smoothed_pair_loss",
    "check_split_invariance",
    "check_token_logprobs",
    "check_top_p_logprobs",
    "check_truncation",
    "check_trust_region_step",
    "check_value_loss",
    "check_weight_checksum",
    "check_whitening",
]
