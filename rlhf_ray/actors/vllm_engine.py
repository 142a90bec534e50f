"""How a vLLM engine is set up so that its caller can step it, read exact log-probs and push weights into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config import RolloutConfig

_PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What one engine needs to start."""

    folder: Path
    dtype: str
    max_model_len: int
    threads: int
    on_gpu: bool
    rollout: RolloutConfig


def make_engine(spec: EngineSpec) -> Any:
    """An engine whose steps the caller drives: vLLM's, or what stands in for it."""
    import torch

    if not spec.on_gpu:
        torch.set_num_threads(spec.threads)
    if spec.rollout.engine == "torch":
        from rlhf_ray.actors.torch_engine import TorchEngine

        return TorchEngine(spec.folder, spec.dtype, spec.rollout.max_concurrent)
    from vllm import EngineArgs, LLMEngine

    rollout = spec.rollout
    where: dict[str, Any] = (
        {"gpu_memory_utilization": rollout.gpu_memory_utilization, "tensor_parallel_size": rollout.tensor_parallel}
        if spec.on_gpu
        else {
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            # vLLM 0.32 rewinds the random generator of a seeded request whose prefill it splits, which a CPU cannot.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_PREFILL_TOKENS, spec.max_model_len),
        }
    )
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(spec.folder),
            dtype=spec.dtype,  # type: ignore[arg-type]  # a Literal in vLLM
            max_model_len=spec.max_model_len,
            max_num_seqs=rollout.max_concurrent,
            logprobs_mode="processed_logprobs",  # of logits / temperature, as the learner computes them
            enable_prefix_caching=True,
            disable_log_stats=True,
            generation_config="vllm",  # no sampling defaults from the model's folder
            worker_extension_cls="rlhf_ray.weight_sync.receiver.WeightReceiver",
            **where,
        )
    )
    return engine


def sampling_params(spec: EngineSpec, seed: int) -> Any:
    """How one response is sampled: from the softmax of logits / temperature, with the log-prob of each token."""
    rollout = spec.rollout
    if rollout.engine == "torch":
        from rlhf_ray.actors.torch_engine import Sampling

        return Sampling(rollout.temperature, rollout.max_new_tokens, seed)
    from vllm import SamplingParams

    return SamplingParams(temperature=rollout.temperature, max_tokens=rollout.max_new_tokens, logprobs=0, seed=seed)


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """Environment of a rollout actor; vLLM reads it when it is imported."""
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if not spec.on_gpu:
        settings |= {
            "OMP_NUM_THREADS": str(spec.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(spec.rollout.kv_cache_gib))),
        }
    return settings
