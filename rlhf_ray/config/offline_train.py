"""How a run on fixed data trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.config.common import DeepSpeedConfig, Fraction
from rlhf_ray.strict import Strict


class OfflineTrainConfig(Strict):
    """A Ray Train worker group that trains one model on fixed data: AdamW, cosine schedule with warm-up, clipping."""

    num_workers: PositiveInt = 1
    cpus_per_worker: Fraction = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    """Optimizer steps; null: as many as `epochs` need."""
    batch_size: PositiveInt = 8
    """Rows in one optimizer step, over all ranks."""
    microbatch_size: PositiveInt | None = None
    """Rows in one forward-backward of a rank; null: its whole share."""
    learning_rate: PositiveFloat = 5e-5
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: NonNegativeFloat = 0.01
    gradient_checkpointing: bool = False
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    eval_every: PositiveInt | None = None
    """Steps between evaluations on held-out rows; null: at the end only."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a lower held-out loss, and keep the best weights; needs eval_every."""
    checkpoint_every: PositiveInt | None = None
    """Steps between commits; null: at the end only."""
    keep_checkpoints: PositiveInt = 2
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a group that lost a worker is started again from one and the same checkpoint."""
    deadline_s: PositiveFloat = 1800.0
    """The longest time without a sign of progress before the run is an error that names the group."""

    @model_validator(mode="after")
    def _arithmetic(self) -> OfflineTrainConfig:
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size = {self.batch_size} does not divide over num_workers = {self.num_workers}")
        share = self.batch_size // self.num_workers
        if self.microbatch_size is not None and share % self.microbatch_size:
            raise ValueError(f"microbatch_size = {self.microbatch_size} does not divide a rank's {share} rows")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts evaluations, so it needs eval_every")
        return self
