"""One rank of the policy or of the critic: plain classes whose methods are the commands of the inbox."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray.actors.trust_region import TrustRegion
from rlhf_ray.actors.update import Loss, gather_rows, run_epochs, shards
from rlhf_ray.algorithms.ppo import PPO
from rlhf_ray.algorithms.report import LossReport
from rlhf_ray.algorithms.trpo import TRPO
from rlhf_ray.config import LearnerConfig, RunConfig
from rlhf_ray.models.causal_lm import CausalLM, add_lora, load_causal_lm
from rlhf_ray.models.checkpoint import copied_state, load_state, model_card, save_policy
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.models.engine import Engine
from rlhf_ray.models.value import load_value_model
from rlhf_ray.ports import Metrics
from rlhf_ray.types import Batch
from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
from rlhf_ray.weight_sync.bucket import Bucket
from rlhf_ray.weight_sync.export import WeightExport


class _Learner:
    """What policy and critic share: an engine, its state on disk, and the way from a batch to an update."""

    role: str

    def __init__(
        self, config: RunConfig, learner: LearnerConfig, module: torch.nn.Module, run_dir: Path, state: Path | None
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.beside = ThreadPoolExecutor(1, thread_name_prefix="save")
        self.rank = dist.get_rank()
        self.algorithm = config.algorithm.make()
        self.engine = Engine(module.to(device()), learner, compute_dtype(config.model.dtype))
        if state is not None:
            load_state(self.engine, state / "state" / self.role)

    def train(self, batch: Batch, step: int, loss: Loss) -> Metrics:
        """Metrics of all inner epochs; a minibatch with a non-finite gradient is kept in `quarantine/`."""

        def keep(minibatch: Batch, number: int) -> None:
            if self.rank == 0:
                folder = self.run_dir / "quarantine"
                folder.mkdir(exist_ok=True)
                save_file(minibatch.tensors(), folder / f"{self.role}-step-{step:06d}-{number}.safetensors")

        order = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        return run_epochs(self.engine, self.algorithm, batch, order, loss, keep).metrics(self.role)

    def answers(self, batch: Batch, ask: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
        """This rank's row numbers and what `ask` says of them, `[n, T]`, without gradients."""
        parts = shards(batch, self.engine.config.microbatch_tokens)
        with torch.no_grad():
            return gather_rows(batch, ((rows, ask(part)) for rows, part in parts))


class PolicyLearner(_Learner):
    """A rank of the policy."""

    role = "policy"

    def __init__(self, config: RunConfig, folder: Path, run_dir: Path, state: Path | None) -> None:
        self.folder = folder
        torch.manual_seed(config.seed)  # adapters start from random numbers, the same on every rank
        model = load_causal_lm(folder, torch.float32)
        if config.policy.lora is not None:
            model = add_lora(model, config.policy.lora)
        super().__init__(config, config.policy, CausalLM(model, config.rollout.temperature), run_dir, state)
        engine_dtype = compute_dtype(config.model.dtype)
        self._export = WeightExport(self.engine, engine_dtype, config.rollout.push_bucket_mib << 20)
        self._group: WeightGroup | None = None
        self._step = 0

    def layout(self) -> tuple[Bucket, ...]:
        """How the weights travel."""
        return self._export.buckets

    def meeting_point(self) -> tuple[str, int]:
        """A free address on this rank's node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            import ray

            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, meeting: Rendezvous) -> None:
        """Rank 0 becomes the sender of the weight group."""
        self._group = WeightGroup(meeting, 0) if self.rank == 0 else None

    def publish(self, version: int) -> int:
        """Sends all weights as `version`; returns the number of buckets."""
        if self.rank == 0 and self._group is None:
            raise RuntimeError("the weight group is gone: this rank was rebuilt after the group had formed")
        fault: RuntimeError | None = None
        for bucket, tensors in self._export:  # to the end, also after an error: ranks may have to gather them together
            if self._group is not None and fault is None:
                try:
                    self._group.send(bucket, tensors, version)
                except RuntimeError as error:
                    fault = error
        if fault is not None:
            raise fault
        return len(self._export.buckets)

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This rank's rows of `[B, T]` log-probabilities under the current weights."""
        return self.answers(batch, lambda part: self._forward(part)[0])

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        """All inner epochs of the algorithm's policy loss; of TRPO, its one step."""
        self._step = step
        if isinstance(self.algorithm, TRPO):
            return TrustRegion(self.engine, self.algorithm, batch, kl_coef).update()

        def loss(part: Batch, weights: Tensor) -> tuple[Tensor, LossReport]:
            logprobs, entropy = self._forward(part)
            return self.algorithm.policy_loss(logprobs, entropy, part, weights, kl_coef)

        return self.train(batch, step, loss)

    def save(self, folder: Path) -> Future[None]:
        """`policy/` (merged, Hugging Face layout) and `state/policy/`, written by rank 0 beside what it does next."""
        tensors: dict[str, Tensor] = {}
        for bucket, parts in self._export:
            if self.rank == 0:
                copies = [part.to("cpu", copy=True) for part in parts]
                tensors |= {spec.name: copy for spec, copy in zip(bucket.specs, copies, strict=True)}
        method = self.config.algorithm.type.replace("_", "-")
        card = model_card(self.config.name, self.config.model.path, method, self._step)
        write_state = copied_state(self.engine)

        def write() -> None:
            if self.rank == 0:
                save_policy(folder / "policy", self.folder, tensors, card)
            write_state(folder / "state" / self.role)

        return self.beside.submit(write)

    def _forward(self, part: Batch) -> tuple[Tensor, Tensor]:
        logprobs, entropy = self.engine(part.token_ids, part.attention_mask, part.response_mask)
        return logprobs, entropy


class CriticLearner(_Learner):
    """A rank of the critic."""

    role = "critic"

    def __init__(self, config: RunConfig, folder: Path, run_dir: Path, state: Path | None) -> None:
        torch.manual_seed(config.seed)
        model = load_value_model(folder, config.critic.init)
        if config.critic.lora is not None:
            model.backbone = add_lora(model.backbone, config.critic.lora)
        super().__init__(config, config.critic, model, run_dir, state)

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This rank's rows of `[B, T]` values."""
        return self.answers(batch, self._values)

    def update(self, batch: Batch, step: int) -> Metrics:
        """All inner epochs of the clipped value loss."""
        algorithm = self.algorithm
        assert isinstance(algorithm, PPO)  # no other algorithm says that it needs a critic

        def loss(part: Batch, weights: Tensor) -> tuple[Tensor, LossReport]:
            return algorithm.value_loss(self._values(part), part, weights)

        return self.train(batch, step, loss)

    def save(self, folder: Path) -> Future[None]:
        """`state/critic/`, written by rank 0 beside what it does next."""
        return self.beside.submit(copied_state(self.engine), folder / "state" / self.role)

    def _values(self, part: Batch) -> Tensor:
        values: Tensor = self.engine(part.token_ids, part.attention_mask)
        return values
