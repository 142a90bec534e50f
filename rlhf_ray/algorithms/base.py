"""What every online algorithm has, and what the learners' workers ask of one. The controller's side: `ports.Algorithm`.

An algorithm is one file with its config and its class. Add one by adding its config to the union in `config/online.py`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.report import LossReport
from rlhf_ray.ports import Metrics
from rlhf_ray.strict import Strict
from rlhf_ray.types import Batch, present


class AlgorithmConfig(Strict):
    """What every online algorithm has. The class variables are facts about the algorithm, not knobs."""

    needs_critic: ClassVar[bool]
    """Whether advantages are made from a critic's values."""
    unit: ClassVar[int] = 1
    """Neighbouring rows of the batch that no minibatch, microbatch or rank may separate: 2 if the loss is of pairs."""
    unit_name: ClassVar[str] = "rollouts"
    needs_whole_weights: ClassVar[bool] = False
    """Whether the policy's update differentiates outside DeepSpeed, twice."""
    constrained: ClassVar[bool] = False
    """Whether it keeps the costs of responses within a budget."""
    min_samples: ClassVar[int] = 1
    """The fewest samples a prompt that say anything."""

    type: str
    num_epochs: PositiveInt = 1
    """Passes over a step's rollouts."""
    num_minibatches: PositiveInt = 1
    """Optimizer steps in one pass."""
    kl_target: PositiveFloat | None = None
    """Mean k1 per response, summed over its tokens (nats per sequence), that the adaptive controller steers the KL
    coefficient to; null keeps it fixed."""
    kl_horizon: PositiveInt = 2000
    """Sequences over which the controller acts (Ziegler et al. 2019, section 2.2)."""

    def units_per_step(self, prompts: int, samples: int) -> int:
        """How many units (`unit_name`) the update of a step has."""
        return prompts * samples


class OnlineAlgorithm(Protocol):
    """What the update of a learner asks for; it uses the config alone, so every rank makes its own."""

    @property
    def config(self) -> AlgorithmConfig: ...

    def weights(self, minibatch: Batch) -> Float[Tensor, "B T"]:
        """The weight of every token of a whole minibatch: the loss is a sum with these, however it is split. A row
        without any is not computed."""

    def policy_loss(
        self,
        logprobs: Float[Tensor, "B T"],
        entropy: Float[Tensor, "B T"],
        batch: Batch,
        weights: Float[Tensor, "B T"],
        kl_coef: float,
    ) -> tuple[Float[Tensor, ""], LossReport]:
        """The policy's loss on a microbatch of whole units, to be added up without any division."""

    def stops(self, minibatch: Metrics) -> bool:
        """Whether these metrics of a minibatch say that the inner epochs end before its optimizer step."""


def kl_to_reference(batch: Batch) -> Metrics:
    """k1 of policy and reference over all response tokens: the mean per token, and the mean over responses of the sum
    over a response's tokens (nats)."""
    kl = ops.k1(present(batch.old_logprobs, "old_logprobs"), present(batch.ref_logprobs, "ref_logprobs"))
    return {
        names.KL_PER_TOKEN: float(ops.masked_mean(kl, batch.response_mask)),
        names.KL_PER_SEQUENCE: float(ops.masked_sum(kl, batch.response_mask)) / len(batch),
    }
