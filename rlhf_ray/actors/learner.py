"""One rank of the policy or of the critic: plain classes whose methods are the commands of the inbox."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.actors.accounting import UpdateAccount, over_ranks
from rlhf_ray.algorithms.ops import token_weights
from rlhf_ray.algorithms.ppo import PPO, LossReport, join_reports
from rlhf_ray.config import LearnerConfig, RunConfig
from rlhf_ray.data.batching import microbatches, minibatches
from rlhf_ray.models.causal_lm import CausalLM, add_lora, load_causal_lm
from rlhf_ray.models.checkpoint import model_card, save_policy
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.models.engine import Engine
from rlhf_ray.models.value import load_value_model
from rlhf_ray.ports import Metrics
from rlhf_ray.types import Batch
from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
from rlhf_ray.weight_sync.bucket import Bucket
from rlhf_ray.weight_sync.export import WeightExport

Loss = Callable[[Batch, Tensor], tuple[Tensor, LossReport]]


class _Learner:
    """What policy and critic share: rows for this rank, state on disk, the accounting of an update."""

    role: str

    def __init__(
        self, config: RunConfig, learner: LearnerConfig, module: torch.nn.Module, run_dir: Path, state: Path | None
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.ppo = PPO(config.algorithm)
        self.budget = learner.microbatch_tokens
        self.engine = Engine(module.to(device()), learner, compute_dtype(config.model.dtype))
        if state is not None:
            folder = state / "state" / self.role
            steps = json.loads((folder / "optimizer.json").read_text())["steps"]
            moments = load_file(folder / "moments.safetensors") if steps else {}
            self.engine.load_trainable_state(load_file(folder / "trainable.safetensors"), moments, steps)

    def mine(self, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """This rank's microbatches with their row numbers, on its device. A rank with fewer rows computes a masked
        one instead, because ZeRO-3 gathers weights on all ranks together."""
        lengths = batch.attention_mask.sum(dim=1)
        for rows in microbatches(lengths, self.world_size, self.budget)[self.rank]:
            if len(rows):
                picked = batch.rows(rows, int(lengths[rows].max()))
            else:
                first = batch.rows(torch.tensor([0]), int(lengths[0]))
                nothing = torch.zeros_like(first.loss_mask)
                picked = first.with_(loss_mask=nothing, response_mask=nothing)
            yield rows, picked.to(device())

    def run_epochs(self, batch: Batch, step: int, loss: Loss) -> Metrics:
        """Minibatches x epochs, one optimizer step each. Stops early once the policy has moved too far from the one
        that sampled; a minibatch whose gradient is not finite is kept on disk and never reaches the weights."""
        algorithm = self.config.algorithm
        account = UpdateAccount(self.role)
        order = torch.Generator().manual_seed(step)
        epochs = (minibatches(len(batch), algorithm.num_minibatches, order) for _ in range(algorithm.num_epochs))
        for index in chain.from_iterable(epochs):
            minibatch = batch.rows(index)
            weights = token_weights(minibatch.loss_mask)
            reports: list[LossReport] = []
            for rows, part in self.mine(minibatch):
                width = part.token_ids.shape[1]
                share = weights[rows, :width] if len(rows) else torch.zeros(1, width)
                value, report = loss(part, share.to(device()))
                self.engine.backward(value)
                reports.append(report)
            totals = over_ranks(join_reports(reports))
            limit = algorithm.max_kl_to_old
            if limit is not None and totals.get(names.POLICY_KL_TO_OLD, 0.0) > limit:
                self.engine.discard()
                break
            step_report = self.engine.step()
            if not step_report.applied:
                self.quarantine(minibatch, step)
            account.add(totals, step_report)
        return account.metrics()

    def gather_rows(self, batch: Batch, answers: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Row numbers and their `[n, T]` answers, padded back to the batch's width."""
        width = batch.token_ids.shape[1]
        pad = torch.nn.functional.pad
        found = [(rows, pad(out.cpu(), (0, width - out.shape[1]))) for rows, out in answers if len(rows)]
        if not found:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, width)
        return torch.cat([rows for rows, _ in found]), torch.cat([out for _, out in found])

    def save_state(self, folder: Path) -> None:
        """`state/<role>/` under `folder`: trainable weights and Adam's moments, whole, as safetensors."""
        weights, moments = self.engine.trainable_state()
        if self.rank == 0:
            target = folder / "state" / self.role
            target.mkdir(parents=True)
            save_file(weights, target / "trainable.safetensors")
            if moments:
                save_file(moments, target / "moments.safetensors")
            (target / "optimizer.json").write_text(json.dumps({"steps": self.engine.steps}))
        dist.barrier()

    def quarantine(self, batch: Batch, step: int) -> None:
        """Keeps a minibatch whose loss or gradient was not finite, to be looked at."""
        if self.rank == 0:
            folder = self.run_dir / "quarantine"
            folder.mkdir(exist_ok=True)
            save_file(batch.tensors(), folder / f"{self.role}-step-{step:06d}.safetensors")


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
        for bucket, tensors in self._export:
            if self._group is not None:
                self._group.send(bucket, tensors, version)
        return len(self._export.buckets)

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This rank's rows of `[B, T]` log-probabilities under the current weights."""
        with torch.no_grad():
            answers = ((rows, self._forward(part)[0]) for rows, part in self.mine(batch))
            return self.gather_rows(batch, answers)

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        """All inner epochs of the clipped policy loss."""

        def loss(part: Batch, weights: Tensor) -> tuple[Tensor, LossReport]:
            logprobs, entropy = self._forward(part)
            return self.ppo.policy_loss(logprobs, entropy, part, weights, kl_coef)

        return self.run_epochs(batch, step, loss)

    def save(self, folder: Path) -> None:
        """`policy/` (merged, Hugging Face layout) and `state/policy/`, written by rank 0."""
        tensors: dict[str, Tensor] = {}
        for bucket, parts in self._export:
            if self.rank == 0:
                # Clones: under ZeRO-3 the gathered tensors are freed with the bucket.
                tensors |= {spec.name: part.cpu().clone() for spec, part in zip(bucket.specs, parts, strict=True)}
        if self.rank == 0:
            card = model_card(self.config.name, self.config.model.path, self.config.algorithm.type, self.engine.steps)
            save_policy(folder / "policy", self.folder, tensors, card)
        self.save_state(folder)

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
        with torch.no_grad():
            answers = ((rows, self.engine(part.token_ids, part.attention_mask)) for rows, part in self.mine(batch))
            return self.gather_rows(batch, answers)

    def update(self, batch: Batch, step: int) -> Metrics:
        """All inner epochs of the clipped value loss."""

        def loss(part: Batch, weights: Tensor) -> tuple[Tensor, LossReport]:
            return self.ppo.value_loss(self.engine(part.token_ids, part.attention_mask), part, weights)

        return self.run_epochs(batch, step, loss)

    def save(self, folder: Path) -> None:
        """`state/critic/`, written by rank 0."""
        self.save_state(folder)
