"""Runs that train a reward model: what they do before, in and after the worker group."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rlhf_ray.config import RewardModelConfig
from rlhf_ray.data.feedback import Feedback, open_feedback
from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.reward import EVALUATION_FILE, RewardEvaluation, evaluate_reward_model
from rlhf_ray.evaluation.reward_items import ScoredItem
from rlhf_ray.evidence import Demonstration, Evidence, Item, PromptOnly
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.models.reward.batch import encode_items
from rlhf_ray.models.reward.build import make_reward_network, spec_for
from rlhf_ray.models.reward.network import RewardNetwork, uncertainty
from rlhf_ray.models.reward.saving import load_reward_network, save_reward_model
from rlhf_ray.models.reward.scorer import measure_scale, score_rows
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward.text import TextEncoder
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.offline.arguments import training_arguments
from rlhf_ray.offline.committed import STATE
from rlhf_ray.offline.reward import RewardSetup, reward_trainer
from rlhf_ray.offline.reward_rows import reward_row
from rlhf_ray.offline.tables import read_table, write_table
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.journal import RunDirectory

MODEL = "model"
SCALE_ANSWERS = 256
"""Training answers behind the scale: enough for mean and deviation to within some 6 %."""
MOST_ITEMS = 3000
"""Held-out items of the evaluation: enough for an interval of 2 %, and scoring a large set on one rank is slow."""
_SPEC_FILE = "spec.json"
_CHUNK = 512


class RewardKind:
    """`kind: reward`."""

    def __init__(self, config: RewardModelConfig, folder: Path, run_dir: Path) -> None:
        self._config, self._folder, self._run_dir, self._data = config, folder, run_dir, run_dir / "data"

    def encode(self, feedback: Feedback) -> tuple[dict[str, object], list[str]]:
        """Writes the token ids of training and held-out rows; returns how many, and notes for people."""
        spec = spec_for(self._config, self._folder, feedback.counts.keys(), feedback.ties > 0)
        encoder = self._encoder(spec)
        counts: dict[str, object] = {}
        notes: list[str] = []
        for name, items in (("train", feedback.train()), ("heldout", feedback.heldout())):
            counter = _Judgements(items)
            rows = (reward_row(encoded, spec) for chunk in _chunks(counter) for encoded in encode_items(chunk, encoder))
            counts[f"items_{name}"] = count = write_table(self._data / f"{name}.arrow", rows)
            if not count:
                raise UserError(
                    f"data.path {self._config.data.path}: no {name} row holds a judgement of an answer; a reward model "
                    "learns from pairs, rankings, ratings and thumbs"
                )
            if counter.left_out:
                notes.append(f"{name}: {counter.left_out} items hold no judgement and are left out")
        replace_file(self._data / _SPEC_FILE, spec.model_dump_json(indent=2) + "\n")
        return counts, notes

    def trainer(self, journal: RunDirectory | None) -> Any:
        """This rank's trainer."""
        config = self._config
        network = self._network()
        arguments = training_arguments(config, str(compute_dtype(config.model.dtype))[6:], in_group=True)
        tables = read_table(self._data / "train.arrow"), read_table(self._data / "heldout.arrow")
        padding = self._encoder(network.spec).padding
        setup = RewardSetup(journal, config.train.deepspeed.gradient_clipping)
        return reward_trainer(config, network, padding, *tables, arguments, setup)

    def measure(self, step: int) -> dict[str, object]:
        """Writes the model of `step` to `model/`, judges it on held-out evidence, and returns what that says.

        The evaluation reads the folder as any user would, so a fault of saving shows in it.
        """
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]  # else ZeRO-3 would shard these copies too
        feedback = open_feedback(self._config.data, self._config.seed)
        target = self._run_dir / MODEL
        if not target.is_dir():
            self._write(step, feedback, target)
        evaluation, truncated = self._evaluate(feedback, target)
        replace_file(self._run_dir / EVALUATION_FILE, evaluation.model_dump_json(indent=2) + "\n")
        overall = evaluation.overall
        return {
            "model_dir": str(target),
            "heldout_accuracy": overall.accuracy,
            "heldout_accuracy_ci95": None if overall.ci95 is None else [round(bound, 4) for bound in overall.ci95],
            "truncated_answers": truncated,
        }

    def _write(self, step: int, feedback: Feedback, target: Path) -> None:
        network = self._network()
        trained = load_file(self._run_dir / "checkpoints" / f"step-{step:06d}" / STATE / "trainable.safetensors")
        unknown = network.load_state_dict(trained, strict=False).unexpected_keys
        if unknown:
            raise RuntimeError(f"the commit of step {step} holds weights that the model has not: {unknown[:3]}")
        network = network.to(device()).eval()
        encoder = self._encoder(network.spec)
        drawn = _sample(_Judgements(feedback.train()), SCALE_ANSWERS, self._config.seed)
        rows = encoder([(item.prompt, answer) for item in drawn for answer in item.answers])
        stats = measure_scale(network, score_rows(network, rows, encoder.padding)[0])
        unfinished = target.with_name(f".{target.name}-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        save_reward_model(unfinished, network, encoder.tokenizer, stats, compute_dtype(self._config.model.dtype))
        (unfinished / "README.md").write_text(_card(self._config, network.spec), encoding="utf-8")
        unfinished.rename(target)

    def _evaluate(self, feedback: Feedback, folder: Path) -> tuple[RewardEvaluation, int]:
        network, tokenizer, _ = load_reward_network(folder, compute_dtype(self._config.model.dtype))
        network = network.to(device()).eval()
        encoder = TextEncoder(tokenizer, self._spec())
        scored: list[ScoredItem] = []
        truncated = 0
        for chunk in _chunks(islice(_Judgements(feedback.heldout()), MOST_ITEMS)):
            rows = encoder([(item.prompt, answer) for item in chunk for answer in item.answers])
            truncated += sum(row.truncated for row in rows)
            lengths = [len(row.ids) - row.prompt_length for row in rows]
            scored += _scored(network, chunk, score_rows(network, rows, encoder.padding), lengths)
        return evaluate_reward_model(scored, self._config.seed), truncated

    def _spec(self) -> RewardSpec:
        return RewardSpec.model_validate_json((self._data / _SPEC_FILE).read_text(encoding="utf-8"))

    def _network(self) -> RewardNetwork:
        config = self._config
        return make_reward_network(self._folder, self._spec(), config.num_layers, config.lora, config.seed)

    def _encoder(self, spec: RewardSpec) -> TextEncoder:
        return TextEncoder(load_tokenizer(self._folder, spec.backbone), spec)


class _Judgements:
    """The items that judge an answer; `left_out` counts the others."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items, self.left_out = items, 0

    def __iter__(self) -> Iterator[Evidence]:
        for item in self._items:
            if isinstance(item, Demonstration | PromptOnly):
                self.left_out += 1
            else:
                yield item


def _chunks(items: Iterable[Evidence]) -> Iterator[list[Evidence]]:
    source = iter(items)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk


def _sample(items: Iterable[Evidence], answers: int, seed: int) -> list[Evidence]:
    """Items with about `answers` answers, each item as likely as any other (reservoir sampling)."""
    draw, kept = random.Random(seed), list[Evidence]()
    for seen, item in enumerate(items):
        if len(kept) < answers // 2:
            kept.append(item)
        elif (place := draw.randint(0, seen)) < len(kept):
            kept[place] = item
    return kept


def _scored(network: RewardNetwork, items: list[Evidence], scores: Any, lengths: list[int]) -> list[ScoredItem]:
    totals, objectives = scores
    spec, bias = network.spec, network.link()[2]
    spread = uncertainty(totals).tolist() if spec.members > 1 else None
    means, start, found = totals.mean(dim=1).tolist(), 0, []
    for item in items:
        own = slice(start, start + len(item.answers))
        start = own.stop
        index = spec.objective_index(item.label.objective, item.label.where)
        values = means[own] if index < 0 else objectives[own, index].tolist()
        found.append(
            ScoredItem(
                evidence=item,
                scores=tuple(values),
                lengths=tuple(lengths[own]),
                uncertainty=None if spread is None else tuple(spread[own]),
                category=item.label.category,
                thumb_bias=0.0 if bias is None else float(bias[index]),
            )
        )
    return found


def _card(config: RewardModelConfig, spec: RewardSpec) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(pipeline_tag="text-classification", library_name="transformers", tags=["reward-model", "rlhf"])
    return f"""---
{data.to_yaml()}
---

# {config.name}

A reward model ({config.architecture.type}, {spec.backbone}; objectives: {", ".join(spec.objectives)}; {spec.members}
member{"s" if spec.members > 1 else ""}), trained by rlhf-ray from `{config.model.path}` on the feedback of
`{config.data.path}`. Its figures on held-out evidence, no prompt of which was trained on, are in `evaluation.json` of
the run directory.

`reward_stats.json` holds the mean and the standard deviation of the raw scores of training answers. Load it by this
folder's name: as a reward source of a run, or with `rlhf_ray.preference_api.RewardModelInference`.
"""
