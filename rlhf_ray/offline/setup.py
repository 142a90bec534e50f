"""What a kind of run gives to its trainer: how its model is written, and state of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf_ray.config import OfflineConfig
from rlhf_ray.data.lineage import lineage_words
from rlhf_ray.models.checkpoint import model_card, save_policy
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.weight_sync.export import Gathering, WeightExport

_BUCKET_BYTES = 64 << 20


class TrainerSetup(Protocol):
    """The kind's side of `Committed`. Methods with collectives inside are called by all ranks in the same order."""

    journal: RunDirectory | None
    """Of rank 0; None elsewhere."""
    clipping: float
    """Largest norm of the gradient."""
    controllers: dict[str, Any]
    """State that travels with the checkpoint, by name: objects with metrics, state_dict and load_state_dict."""

    def export(self, engine: Gathering, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to write as the model, whole, on rank 0 (collective)."""

    def write_model(self, folder: Path, tensors: Mapping[str, Tensor], step: int) -> None:
        """Writes them into a checkpoint's folder (rank 0)."""

    def tensors(self, trainer: Any) -> dict[str, Mapping[str, Tensor]]:
        """More tensors that a run resumes from, by file name (rank 0)."""

    def load_tensors(self, trainer: Any, folder: Path) -> None: ...


class PolicySetup:
    """Runs that end in a causal language model: SFT and the DPO family."""

    def __init__(
        self, journal: RunDirectory | None, config: OfflineConfig, folder: Path, method: str, dtype: torch.dtype
    ) -> None:
        self.journal = journal
        self.clipping = config.train.deepspeed.gradient_clipping
        self._config, self._folder, self._method, self._dtype = config, folder, method, dtype
        self.controllers: dict[str, Any] = {}

    def export(self, engine: Gathering, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights under Hugging Face names."""
        keep = torch.distributed.get_rank() == 0
        found: dict[str, Tensor] = {}
        for bucket, parts in WeightExport(engine, self._dtype, _BUCKET_BYTES):
            if keep:
                found |= {spec.name: part.cpu().clone() for spec, part in zip(bucket.specs, parts, strict=True)}
        return found

    def write_model(self, folder: Path, tensors: Mapping[str, Tensor], step: int) -> None:
        """`policy/` in Hugging Face layout."""
        assert self.journal is not None  # rank 0 has it
        manifest = json.loads((self.journal.path / "manifest.json").read_text())
        card = model_card(self._config.name, self._config.model.path, self._method, step)
        if "feedback" in manifest:
            card += lineage_words(manifest["feedback"])
        save_policy(folder / "policy", self._folder, tensors, card)

    def tensors(self, trainer: Any) -> dict[str, Mapping[str, Tensor]]:
        """A synced reference moves with the policy, so it is state."""
        if not getattr(trainer.args, "sync_ref_model", False):
            return {}
        reference: nn.Module = trainer.accelerator.unwrap_model(trainer.ref_model)
        return {"reference": {name: p.detach().cpu().clone() for name, p in reference.named_parameters()}}

    def load_tensors(self, trainer: Any, folder: Path) -> None:
        """Puts a synced reference back."""
        file = folder / "reference.safetensors"
        if not file.is_file():
            return
        from safetensors.torch import load_file

        saved = load_file(file)
        with torch.no_grad():
            for name, parameter in trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters():
                parameter.copy_(saved[name])
