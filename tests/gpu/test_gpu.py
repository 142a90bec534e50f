"""What only a GPU can show: bfloat16 autocast, NCCL, and vLLM's GPU kernels after a push. See README.md beside this."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from rlhf_ray.models.tiny import tiny_model
from tests.builders import random_batch, run_config
from tests.ports import free_port

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="torch.cuda sees no GPU on this machine")]
NEW_TOKENS = 12
PROMPTS = [list(range(5 + i, 12 + 2 * i)) for i in range(16)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """This process as the only rank of an NCCL group."""
    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(where, MASTER_PORT=str(free_port()))
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _learn(tiny: Path, out: Path, role: str, dtype: str) -> tuple[torch.Tensor, dict[str, float], dict[str, Any]]:
    """What a learner answers for a batch before an update, the update's metrics, and its weights after it."""
    from rlhf_ray.actors.learner import CriticLearner, PolicyLearner

    config = run_config(tiny, model={"dtype": dtype})
    learner: Any = (PolicyLearner if role == "policy" else CriticLearner)(config, tiny, out, None)
    batch = random_batch(12, 24, 256)
    _, answers = learner.logprobs(batch) if role == "policy" else learner.values(batch)
    metrics = learner.update(batch, 0, 0.1) if role == "policy" else learner.update(batch, 0)
    return answers, metrics, dict(learner.engine.module.named_parameters())


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_bfloat16_agrees_with_float32_and_keeps_float32_weights(
    tiny: Path, tmp_path: Path, one_rank: None, role: str
) -> None:
    full, full_metrics, _ = _learn(tiny, tmp_path, role, "float32")
    low, low_metrics, parameters = _learn(tiny, tmp_path, role, "bfloat16")
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert {parameter.device.type for parameter in parameters.values()} == {"cuda"}
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, atol=0.05, rtol=0)
    assert low_metrics[f"{role}/loss"] == pytest.approx(full_metrics[f"{role}/loss"], rel=0.1, abs=0.02)
    assert low_metrics[f"{role}/updates"] == 1.0
    if role == "critic":
        assert parameters["head.weight"].dtype == torch.float32


def _weight_group(rank: int, port: int) -> None:
    from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
    from rlhf_ray.weight_sync.bucket import TensorSpec, WeightPushError, plan_buckets

    torch.cuda.set_device(rank)
    expected = {f"w{i}": torch.arange(1000 * (i + 1), dtype=torch.float32, device="cuda") + i for i in range(5)}
    specs = [TensorSpec(name, tuple(tensor.shape), "float32") for name, tensor in expected.items()]
    buckets = plan_buckets(specs, 10_000)
    group = WeightGroup(Rendezvous("127.0.0.1", port, 2, "nccl", 60.0), rank)
    for version in (1, 2):
        if rank == 0:
            for bucket in buckets:
                group.send(bucket, [expected[spec.name] for spec in bucket.specs], version)
        elif version == 1:
            for name, tensor in group.receive(buckets, 1):
                torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
        else:
            for bucket in buckets:  # every broadcast has to be met, so one bucket at a time
                with pytest.raises(WeightPushError, match="expected weights of version 3, received version 2"):
                    list(group.receive([bucket], 3))
    torch.cuda.synchronize()


@pytest.mark.skipif(GPUS < 2, reason=f"NCCL needs a GPU of its own for each member; this machine has {GPUS}")
def test_the_weight_group_over_nccl() -> None:
    mp.spawn(_weight_group, args=(free_port(),), nprocs=2)


class Loopback:
    """Stands in for the weight group where sender and engine share one GPU: packs, and unpacks with every check."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def receive(self, buckets: Any, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        from rlhf_ray.weight_sync.bucket import pack, unpack

        for bucket in buckets:
            yield from unpack(bucket, pack(bucket, [self._tensors[s.name] for s in bucket.specs], version), version)


def test_after_a_push_greedy_decoding_equals_transformers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 prompts in float32, all weights changed since the engine started."""
    from transformers import AutoModelForCausalLM

    from rlhf_ray.actors.rollout import RolloutActor
    from rlhf_ray.actors.vllm_engine import EngineSpec, engine_environment
    from rlhf_ray.config import RolloutConfig
    from rlhf_ray.models.device import device
    from rlhf_ray.weight_sync.bucket import TensorSpec, plan_buckets

    rollout = RolloutConfig(max_new_tokens=NEW_TOKENS, gpu_memory_utilization=0.3, kv_cache_gib=0.25)
    spec = EngineSpec(tiny, "float32", max_model_len=128, threads=1, on_gpu=bool(GPUS), rollout=rollout)
    for name, value in engine_environment(spec).items():
        monkeypatch.setenv(name, value)
    actor = RolloutActor(spec)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).to(device())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buckets = plan_buckets([TensorSpec(name, tuple(t.shape), "float32") for name, t in tensors.items()], 200_000)

    def install(worker: Any) -> None:
        receiver = getattr(worker, "worker", worker)  # vLLM wraps the worker that has our methods
        receiver._buckets, receiver._names, receiver._group = buckets, set(tensors), Loopback(tensors)

    engine: Any = actor._engine
    actor._on_engine(lambda: engine.collective_rpc(install))
    assert actor.load_weights(1) == len(tensors)
    for number, prompt in enumerate(PROMPTS):
        ours = actor._on_engine(lambda n=number, p=prompt: _greedy(engine, f"greedy-{n}", p))  # type: ignore[misc]  # defaults bind the loop variables
        with torch.no_grad():
            ids = torch.tensor([prompt], device=device())
            theirs = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)[0, len(prompt) :]
        assert ours == theirs.tolist(), prompt


def _greedy(engine: Any, request: str, prompt: list[int]) -> list[int]:
    from vllm import SamplingParams

    engine.add_request(request, {"prompt_token_ids": prompt}, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS))
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                return list(output.outputs[0].token_ids)
    raise AssertionError("no output")
