"""What a run takes of main memory at its peak, by role, where that computes on CPU in float32.

The factors were fitted to what `benchmarks/memory.py` measured, and are checked by it.
"""

from __future__ import annotations

from rlhf_ray.config import LearnerConfig, RunConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.folder import model_config, resolve_model
from rlhf_ray.resources import GIB, learner_parameters, least_memory_gib, parameters

_FLOAT = 4
_PROCESS_GIB = 0.47
"""Python, torch, transformers and Ray in one process; what processes share counts in part."""
_VLLM_GIB = 1.52
_CONTROLLER_GIB = 0.42
_INBOX_GIB = 0.9
"""An inbox and Ray Train's controller."""
_ACTIVATIONS = 29
"""Floats that a block keeps for the backward pass, for each token and unit of its width."""
_LOGITS_TRAINING, _LOGITS = 3, 2
"""How often the logits of a microbatch are there at once, with and without a backward pass."""
_COMMITTED = 3
"""Weights and two moments."""
_BOTH = 0.2
"""A commit is written beside generation mostly, not beside an update: so much of the smaller one comes on top, more on
a busy machine."""
_MERGED = 2
"""The policy's weights as they are served, and once more while they are written. If all are trained, the second is the
part above."""


def estimated_gib(config: RunConfig) -> dict[str, float]:
    """GiB of all processes of each role. A hub model that is not downloaded counts as nothing, and so do activations
    where `config.json` does not say the shape."""
    least, rollout, reference = least_memory_gib(config), config.rollout, config.reference
    logits = _LOGITS * _logits_gib(config, config.policy.microbatch_tokens)
    vllm = _VLLM_GIB + _FLOAT * parameters(config.model.path) / GIB  # twice there while it loads or takes new ones
    more = {
        "rollout": rollout.engines * (vllm if rollout.engine == "vllm" else _PROCESS_GIB),
        "reward": config.reward.replicas * _PROCESS_GIB,
        "reference": reference.replicas * (_PROCESS_GIB + logits),
        **{role: _learner_gib(config, role, learner) for role, learner in config.learners.items()},
    }
    on_cpu = {role: weights + more[role] for role, weights in least.items()}
    return {"controller": _CONTROLLER_GIB} | on_cpu | {f"{role} inbox": _INBOX_GIB for role in config.learners}


def _learner_gib(config: RunConfig, role: str, learner: LearnerConfig) -> float:
    """Beside weights, gradients and Adam's state, over all ranks, of which the first writes the commits."""
    weights, trained = _FLOAT * learner_parameters(config, role) / GIB, 0 if learner.lora else 1
    written = weights * (trained * _COMMITTED + (_MERGED - trained if role == "policy" else 0))
    computed = _activations_gib(config, learner)
    if role == "policy":
        computed += _LOGITS_TRAINING * _logits_gib(config, learner.microbatch_tokens)
    first = max(written, computed) + _BOTH * min(written, computed)
    return learner.num_workers * _PROCESS_GIB + first + (learner.num_workers - 1) * computed


def _activations_gib(config: RunConfig, learner: LearnerConfig) -> float:
    width, blocks = _shape(config, "hidden_size"), _shape(config, "num_hidden_layers")
    kept = blocks + _ACTIVATIONS if learner.gradient_checkpointing else blocks * _ACTIVATIONS
    return _FLOAT * _tokens(config, learner.microbatch_tokens) * width * kept / GIB


def _logits_gib(config: RunConfig, microbatch_tokens: int) -> float:
    """Of the tokens of a microbatch that are answers."""
    longest = config.prompts.max_prompt_tokens + config.rollout.max_new_tokens
    answers = _tokens(config, microbatch_tokens) * config.rollout.max_new_tokens / longest
    return _FLOAT * answers * _shape(config, "vocab_size") / GIB


def _tokens(config: RunConfig, microbatch_tokens: int) -> int:
    longest = config.prompts.max_prompt_tokens + config.rollout.max_new_tokens
    return min(microbatch_tokens, config.rollouts_per_step * longest)


def _shape(config: RunConfig, name: str) -> int:
    try:
        value = model_config(resolve_model(config.model.path, download=False)).get(name, 0)
    except UserError:
        return 0
    return value if isinstance(value, int) else 0
