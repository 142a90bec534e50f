"""Runs that train a policy on fixed data: what SFT and the DPO family do before, in and after the worker group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config import PreferenceConfig, SFTConfig
from rlhf_ray.data.convert import as_pairs
from rlhf_ray.data.encoding import Encoder
from rlhf_ray.data.feedback import Feedback
from rlhf_ray.errors import UserError
from rlhf_ray.models.device import compute_dtype
from rlhf_ray.offline.arguments import training_arguments
from rlhf_ray.offline.measure import answer_kl, implicit_accuracy
from rlhf_ray.offline.preference import pair_rows, preference_rows, preference_trainer
from rlhf_ray.offline.setup import PolicySetup
from rlhf_ray.offline.sft import sft_rows, sft_trainer
from rlhf_ray.offline.tables import read_table, write_table
from rlhf_ray.rundir.journal import RunDirectory


class PolicyKind:
    """`kind: sft` and `kind: preference`."""

    def __init__(self, config: SFTConfig | PreferenceConfig, folder: Path, run_dir: Path) -> None:
        self._config, self._folder, self._run_dir, self._data = config, folder, run_dir, run_dir / "data"

    def encode(self, feedback: Feedback) -> tuple[dict[str, object], list[str]]:
        """Writes the token ids of training and held-out rows; returns how many, and notes for people."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        counts: dict[str, object] = {}
        notes: list[str] = []
        for name, items in (("train", feedback.train), ("heldout", feedback.heldout)):
            encoder = Encoder(tokenizer, self._config.data.max_tokens)
            if isinstance(self._config, SFTConfig):
                rows, left_out = sft_rows(items(), encoder)
            else:
                rows, left_out = preference_rows(self._config, items(), encoder)
            counts[f"items_{name}"] = count = write_table(self._data / f"{name}.arrow", rows)
            notes += [f"{name}: {note}" for note in encoder.notes()]
            notes += [f"{name}: {number} items left out: {reason}" for reason, number in left_out.items()]
            if not count:
                why = f" ({'; '.join(notes)})" if notes else ""
                raise UserError(
                    f"data.path {self._config.data.path}: no {name} row that {self._what()} can be trained on is left"
                    f"{why}; see `rlhf-ray data check` for what the file holds"
                )
        if isinstance(self._config, PreferenceConfig):
            pairs = as_pairs(feedback.heldout())
            rows = pair_rows(pairs, Encoder(tokenizer, self._config.data.max_tokens))
            write_table(self._data / "heldout-pairs.arrow", rows)
        return counts, notes

    def trainer(self, journal: RunDirectory | None) -> Any:
        """This rank's trainer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        config = self._config
        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32, use_safetensors=True)
        dtype = compute_dtype(config.model.dtype)
        setup = PolicySetup(journal, config, self._folder, self._what(), dtype)
        arguments = training_arguments(config, str(dtype).removeprefix("torch."), in_group=True)
        tables = read_table(self._data / "train.arrow"), read_table(self._data / "heldout.arrow")
        if isinstance(config, SFTConfig):
            return sft_trainer(config, model, tokenizer, *tables, arguments, setup)
        return preference_trainer(config, model, tokenizer, *tables, arguments, setup)

    def measure(self, step: int) -> dict[str, object]:
        """What the saved policy of `step` says on held-out pairs; reads the folder as any user would."""
        policy = self._run_dir / "checkpoints" / f"step-{step:06d}" / "policy"
        found: dict[str, object] = {"policy_dir": str(policy)}
        pairs = self._data / "heldout-pairs.arrow"
        if isinstance(self._config, PreferenceConfig) and pairs.is_file() and pairs.stat().st_size:
            table = read_table(pairs)
            found |= implicit_accuracy(self._config.method, policy, self._folder, table)
            found["heldout_kl"] = answer_kl(policy, self._folder, table)
        return found

    def _what(self) -> str:
        return "sft" if isinstance(self._config, SFTConfig) else self._config.method.type
