"""The reward model's trainer: transformers' loop around one loss over mixed evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from rlhf_ray.algorithms.evidence_loss import item_weights, mixed_loss, ordered_items
from rlhf_ray.config import RewardModelConfig
from rlhf_ray.models.engine import enable_gradient_checkpointing
from rlhf_ray.models.reward.batch import RewardBatch
from rlhf_ray.models.reward.network import RewardNetwork
from rlhf_ray.offline.committed import Committed
from rlhf_ray.offline.reward_rows import reward_batch
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.weight_sync.export import Gathering


class RewardSetup:
    """A reward run commits its trainable weights only; the model's folder is made of the last of them."""

    def __init__(self, journal: RunDirectory | None, clipping: float) -> None:
        self.journal = journal
        self.clipping = clipping
        self.controllers: dict[str, Any] = {}

    def export(self, engine: Gathering, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def write_model(self, folder: Path, tensors: Mapping[str, Tensor], step: int) -> None:
        """Nothing."""

    def tensors(self, trainer: Any) -> dict[str, Mapping[str, Tensor]]:
        """Nothing."""
        return {}

    def load_tensors(self, trainer: Any, folder: Path) -> None:
        """Nothing."""


def reward_trainer(
    config: RewardModelConfig,
    network: RewardNetwork,
    padding: int,
    train: Any,
    heldout: Any,
    arguments: dict[str, Any],
    setup: RewardSetup,
) -> Any:
    """The trainer, ready to `train()`."""

    if config.train.gradient_checkpointing:
        for backbone in (*network.backbones, *network.prompt_backbones):
            enable_gradient_checkpointing(backbone)

    def collate(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        batch = reward_batch(rows, network.spec, padding)
        # `count` tells transformers how many items a batch has, when it averages held-out losses.
        return {"batch": batch, "count": torch.ones(len(rows))}

    return CommittedReward(
        config=config,
        model=network,
        args=TrainingArguments(
            **{**arguments, "gradient_checkpointing": False}, remove_unused_columns=False, label_names=[]
        ),
        train_dataset=train,
        eval_dataset=heldout,
        data_collator=collate,
        setup=setup,
    )


class CommittedReward(Committed, Trainer):
    """Trains a `RewardNetwork`. The loss of an optimizer step is one weighted mean over its items on all ranks."""

    def __init__(self, *arguments: Any, config: RewardModelConfig, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._config = config
        self.model_accepts_loss_kwargs = True  # the loss is divided by the whole step's weight already
        self._counts: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(3))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        weights = [self._weight(sample["batch"]) for sample in batch_samples]
        total = torch.stack(weights).sum().to(device)
        return cast(Tensor, self.accelerator.reduce(total))

    def _weight(self, batch: RewardBatch) -> Tensor:
        return item_weights(batch.items, self._config.loss_weights).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The microbatch's part of the step's loss; of a held-out batch its own mean."""
        batch: RewardBatch = inputs["batch"]
        output = model(batch.tokens)
        training = num_items_in_batch is not None
        weight = self._weight(batch) if num_items_in_batch is None else num_items_in_batch
        loss = mixed_loss(
            output.scores,
            output.totals,
            batch.items,
            output.links,
            self._config.loss_weights,
            self._config.center_coef,
            float(weight),
        )
        self._count("train" if training else "eval", output, batch)
        return loss * self.accelerator.num_processes if training else loss  # gradients are averaged over ranks

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        """The loss alone."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def count_tokens(self, inputs: Any) -> int:
        """Of a batch, without padding."""
        return int(inputs["batch"].tokens.tokens)

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        """With accuracy and margin over the answers that people told apart, on all ranks."""
        part = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        right, pairs, margin = self.accelerator.reduce(self._counts.pop(part, torch.zeros(3)).to(self.args.device))
        if pairs > 0:
            prefix = "eval_" if part == "eval" else ""
            logs |= {f"{prefix}accuracy": float(right / pairs), f"{prefix}margin": float(margin / pairs)}
        super().log(logs, *arguments)

    def _count(self, part: str, output: Any, batch: RewardBatch) -> None:
        self._counts[part] += ordered_items(output.scores.detach(), output.totals.detach(), batch.items).cpu()
