"""Preference optimization in a few lines of Python, in this process and without Ray: for lessons and small studies.

The trainers, rows and controllers are those of `rlhf-ray train`; only the worker group, DeepSpeed and the run directory
are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config import LoraConfig, PreferenceConfig
from rlhf_ray.config.offline import DPOConfig, KLTargetConfig
from rlhf_ray.data.convert import as_pairs
from rlhf_ray.data.encoding import Encoder
from rlhf_ray.data.files import raw_rows
from rlhf_ray.data.shapes import BadRow, parse
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import Item
from rlhf_ray.models.folder import check_causal_lm, resolve_model
from rlhf_ray.offline.arguments import training_arguments
from rlhf_ray.offline.preference import pair_rows, preference_trainer
from rlhf_ray.offline.setup import PolicySetup

Rows = Sequence[Mapping[str, object]] | str | Path
"""Preference rows of any shape that `rlhf-ray data check` knows, or the path of a file with such rows."""


class DPOPipeline:
    """Direct preference optimization of `model_name` (the embedded model, a folder, or a hub id)."""

    def __init__(
        self,
        model_name: str = "smollm2-135m",
        beta: float = 0.1,
        learning_rate: float = 5e-5,
        *,
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        lora_rank: int | None = 16,
        batch_size: int = 8,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        """`lora_rank` None fine-tunes all weights. Settings that do not fit together raise pydantic's error."""
        self._method = {"type": "dpo", "beta": beta, "loss": loss, "label_smoothing": label_smoothing}
        self._base = {
            "name": "pipeline",
            "seed": seed,
            "model": {"path": model_name},
            "data": {"path": "in memory", "max_tokens": max_tokens},
            "lora": None if lora_rank is None else LoraConfig(rank=lora_rank, alpha=2 * lora_rank),
        }
        self._train = {"batch_size": batch_size, "learning_rate": learning_rate}
        self._trainer: Any = None
        self._config()  # a mistake shows now

    def train(self, train_data: Rows, val_data: Rows | None = None, num_epochs: float = 1.0) -> list[dict[str, float]]:
        """Trains and returns a dictionary of numbers a step, as TRL logs them; with `val_data` the last has `eval_...`.

        Raises `UserError` for rows that are no preferences.
        """
        config = self._config(num_epochs)
        train = self._dataset(config, train_data)
        heldout = None if val_data is None else self._dataset(config, val_data)
        self._trainer = self._make(config, train, heldout)
        self._trainer.train()
        if heldout is not None:
            self._trainer.evaluate()
        return [{key: float(value) for key, value in line.items()} for line in self._trainer.state.log_history]

    def save(self, folder: str | Path) -> Path:
        """Writes the trained policy, adapters merged, with its tokenizer; returns the folder."""
        if self._trainer is None:
            raise UserError("DPOPipeline.save: nothing has been trained yet; call train() first")
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        merged.save_pretrained(folder)
        self._trainer.processing_class.save_pretrained(folder)
        return Path(folder)

    def _config(self, num_epochs: float = 1.0) -> PreferenceConfig:
        train = {**self._train, "epochs": num_epochs}
        return PreferenceConfig.model_validate({**self._base, "method": self._method, "train": train})

    def _dataset(self, config: PreferenceConfig, rows: Rows) -> Any:
        from datasets import Dataset  # type: ignore[import-untyped]  # ships no types
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(_checked_folder(config))
        encoder = Encoder(tokenizer, config.data.max_tokens)
        encoded = list(pair_rows(as_pairs(_items(config, rows)), encoder))
        if not encoded:
            raise UserError("DPOPipeline: no row holds a preference between two answers that fit max_tokens")
        return Dataset.from_list(encoded)

    def _make(self, config: PreferenceConfig, train: Any, heldout: Any) -> Any:
        from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

        folder = _checked_folder(config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        setup = PolicySetup(None, config, folder, "dpo", torch.float32)
        arguments = training_arguments(config, "float32", in_group=False)
        trainer = preference_trainer(config, model, tokenizer, train, heldout, arguments, setup)
        trainer.remove_callback(PrinterCallback)
        return trainer


class AdaptiveDPO(DPOPipeline):
    """DPO whose beta follows the measured KL to the reference: a target instead of a guess."""

    def __init__(
        self, model_name: str = "smollm2-135m", initial_beta: float = 0.1, target_kl: float = 2.0, **settings: Any
    ) -> None:
        """`target_kl` is in nats per sequence, as `method.adaptive_beta.target_kl`; `settings` as `DPOPipeline`, but
        the loss is `cdpo` with label smoothing 0.1 unless one is given: the plain one has no optimum to steer."""
        smoothed: dict[str, Any] = {} if "loss" in settings else {"loss": "cdpo", "label_smoothing": 0.1}
        super().__init__(model_name, initial_beta, **{**smoothed, **settings})
        self._method |= {"adaptive_beta": KLTargetConfig(type="kl", target_kl=target_kl)}
        self._config()

    @property
    def beta(self) -> float:
        """Beta now: as given before training, as the controller left it after."""
        method = self._config().method
        assert isinstance(method, DPOConfig)  # as built above
        return method.beta if self._trainer is None else float(self._trainer.beta)


def _checked_folder(config: PreferenceConfig) -> Path:
    """The model's, found fit to be trained, before any of it is loaded."""
    folder = resolve_model(config.model.path)
    check_causal_lm(folder)
    return folder


def _items(config: PreferenceConfig, rows: Rows) -> Iterable[Item]:
    """The evidence in `rows`; a `UserError` names the first bad one."""
    named = raw_rows(str(rows)) if isinstance(rows, str | Path) else ((f"row {i}", r) for i, r in enumerate(rows, 1))
    for where, row in named:
        try:
            yield from parse(row, where, config.data)
        except BadRow as error:
            raise UserError(f"{where}: {error}") from None
