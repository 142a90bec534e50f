"""TRL's trainers as this project uses them, in this process: losses against their definitions, rows, adaptive beta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config import PreferenceConfig, SFTConfig
from rlhf_ray.data.encoding import Encoder
from rlhf_ray.data.feedback import open_feedback
from rlhf_ray.models.causal_lm import CausalLM
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.offline.arguments import training_arguments
from rlhf_ray.offline.measure import answer_logprobs, implicit_accuracy
from rlhf_ray.offline.preference import preference_rows, preference_trainer
from rlhf_ray.offline.setup import PolicySetup
from rlhf_ray.offline.sft import sft_rows, sft_trainer

ROWS = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("other"), seed=7)


def _preference(tiny: Path, **method: Any) -> PreferenceConfig:
    return PreferenceConfig.model_validate(
        {
            "name": "unit",
            "model": {"path": str(tiny)},
            "data": {"path": "demo", "limit": 40, "max_tokens": 200},
            "method": method,
            "train": {"batch_size": 4, "learning_rate": 1e-3, "max_steps": 2},
        }
    )


def _rows(config: Any, tiny: Path) -> Dataset:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny), config.data.max_tokens)
    items = open_feedback(config.data, config.seed).train()
    make = sft_rows if isinstance(config, SFTConfig) else preference_rows
    rows, _ = make(items, encoder) if make is sft_rows else make(config, items, encoder)  # type: ignore[call-arg, arg-type]  # two signatures
    return Dataset.from_list(list(rows)[:ROWS])


def _trainer(config: Any, tiny: Path, model: Any = None, rows: Dataset | None = None) -> Any:
    model = model if model is not None else AutoModelForCausalLM.from_pretrained(tiny)
    rows = rows if rows is not None else _rows(config, tiny)
    setup = PolicySetup(None, config, tiny, "unit", torch.float32)
    make = sft_trainer if isinstance(config, SFTConfig) else preference_trainer
    arguments = training_arguments(config, "float32", in_group=False)
    return make(config, model, AutoTokenizer.from_pretrained(tiny), rows, rows, arguments, setup)  # type: ignore[arg-type]  # as the config is


def _log_ratios(policy: Path, reference: Path, rows: Dataset) -> tuple[Tensor, Tensor]:
    ratios = answer_logprobs(policy, list(rows)) - answer_logprobs(reference, list(rows))
    return ratios[:, 0], ratios[:, 1]


def _loss(trainer: Any) -> float:
    return float(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_cdpo_is_its_definition(tiny: Path, other: Path, smoothing: float) -> None:
    config = _preference(tiny, type="dpo", loss="cdpo", label_smoothing=smoothing)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.config._name_or_path = str(tiny)  # the reference
    trainer = _trainer(config, tiny, model)
    chosen, rejected = _log_ratios(other, tiny, trainer.train_dataset)
    x = 0.1 * (chosen - rejected)
    expected = -(1 - smoothing) * F.logsigmoid(x) - smoothing * F.logsigmoid(-x)
    assert _loss(trainer) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_dpo_without_a_reference_is_that_of_the_policy_alone(other: Path) -> None:
    trainer = _trainer(_preference(other, type="dpo", reference="none", beta=0.05), other)
    logprobs = answer_logprobs(other, list(trainer.train_dataset))
    expected = -F.logsigmoid(0.05 * (logprobs[:, 0] - logprobs[:, 1])).mean()
    assert _loss(trainer) == pytest.approx(float(expected), rel=1e-4)


def test_simpo_is_its_definition(tiny: Path) -> None:
    method = {"type": "cpo", "loss": "simpo", "sft_weight": 0.0, "beta": 2.0, "simpo_gamma": 1.0}
    trainer = _trainer(_preference(tiny, **method), tiny)
    rows = list(trainer.train_dataset)
    lengths = torch.tensor([[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows])
    means = answer_logprobs(tiny, rows) / lengths
    expected = -F.logsigmoid(2.0 * (means[:, 0] - means[:, 1]) - 1.0).mean()
    assert _loss(trainer) == pytest.approx(float(expected), rel=1e-4)


def test_packed_rows_do_not_see_each_other(tiny: Path) -> None:
    base = {"name": "unit", "model": {"path": str(tiny)}, "data": {"path": "demo", "limit": 40, "max_tokens": 256}}
    base["train"] = {"batch_size": 2, "max_steps": 1}
    plain = SFTConfig.model_validate(base)
    packed = SFTConfig.model_validate({**base, "packing": True})
    rows = _rows(plain, tiny)
    trainer = _trainer(packed, tiny, rows=rows)
    assert len(trainer.train_dataset) < len(rows), "nothing was packed"
    losses, tokens = 0.0, 0
    for batch in trainer.get_train_dataloader():
        batch = trainer._prepare_inputs(batch)
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, dict(batch))
        counted = int((batch["labels"][:, 1:] != -100).sum())
        losses, tokens = losses + float(loss) * counted, tokens + counted
    model = CausalLM(AutoModelForCausalLM.from_pretrained(tiny), 1.0)
    expected, total = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        answered = torch.tensor([row["labels"]]) != -100
        with torch.no_grad():
            expected -= float(model(ids, torch.ones_like(ids).bool(), answered)[0].sum())
        total += int(answered.sum())
    assert tokens == total
    assert losses / tokens == pytest.approx(expected / total, rel=1e-4)


def test_kto_reads_neighbours_as_mismatched_answers(tiny: Path) -> None:
    trainer = _trainer(_preference(tiny, type="kto"), tiny)
    data = trainer.train_dataset
    for start in range(0, len(data), 4):
        answers = data["completion_ids"][start : start + 4]
        assert data["KL_completion_ids"][start : start + 4] == [answers[-1], *answers[:-1]]
    assert {True, False} == set(data["label"])


def _perturbed(tiny: Path) -> Any:
    """A trainer whose policy differs from its reference from the first step, in every weight."""
    config = _preference(tiny, type="dpo", adaptive_beta={"type": "kl", "target_kl": 1.0, "smoothing": 0.0})
    trainer = _trainer(config, tiny)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return trainer


def test_the_measured_kl_is_the_exact_one_at_the_mean_length(tiny: Path) -> None:
    trainer = _perturbed(tiny)
    (batch,) = list(trainer.get_train_dataloader())[:1]
    trainer.model.train()
    trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    reference = AutoModelForCausalLM.from_pretrained(tiny)
    total, tokens = 0.0, 0
    for ids, mask, attended in zip(batch["input_ids"], batch["completion_mask"], batch["attention_mask"], strict=True):
        with torch.no_grad():
            p, q = (
                torch.log_softmax(m(input_ids=ids[None], attention_mask=attended[None]).logits[0].double(), -1)
                for m in (trainer.model, reference)
            )
        per_position = (p.exp() * (p - q)).sum(-1)
        answered = [t for t in range(1, len(ids)) if mask[t]]
        total, tokens = total + float(sum(per_position[t - 1] for t in answered)), tokens + len(answered)
    lengths = [len(ids) for row in trainer.train_dataset for ids in (row["chosen_ids"], row["rejected_ids"])]
    measured = trainer.setup.controllers["beta"].kl
    assert measured == pytest.approx(total / tokens * sum(lengths) / len(lengths), rel=1e-3) and measured > 0.01


def test_the_gap_of_a_batch_sets_the_beta_of_its_own_loss(tiny: Path, other: Path) -> None:
    config = _preference(tiny, type="dpo", adaptive_beta={"type": "gap", "alpha": 0.5, "momentum": 0.0})
    model = AutoModelForCausalLM.from_pretrained(other)
    model.config._name_or_path = str(tiny)
    trainer = _trainer(config, tiny, model)
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
    trainer.model.train()
    first = trainer.compute_loss(trainer.model, batches[0]).item()
    assert trainer.beta == pytest.approx(0.1)  # no mean before it
    second = trainer.compute_loss(trainer.model, batches[1]).item()
    sampler = list(trainer.sampler)
    rows = trainer.train_dataset
    gaps = []
    for part in (sampler[:4], sampler[4:8]):
        chosen, rejected = _log_ratios(other, tiny, rows.select(part))
        gaps.append(chosen - rejected)
    expected = 0.1 * (1 + 0.5 * 0.1 * float(gaps[1].mean() - gaps[0].mean()))
    assert trainer.beta == pytest.approx(expected, rel=1e-3) and expected != pytest.approx(0.1, rel=1e-3)
    assert first == pytest.approx(float(-F.logsigmoid(0.1 * gaps[0]).mean()), rel=1e-3)
    assert second == pytest.approx(float(-F.logsigmoid(expected * gaps[1]).mean()), rel=1e-3)


def test_evaluation_does_not_move_beta(tiny: Path) -> None:
    trainer = _perturbed(tiny)
    trainer.evaluate()
    assert trainer.beta == 0.1 and trainer.setup.controllers["beta"].kl is None


def test_implicit_accuracy_counts_by_hand(tiny: Path, other: Path) -> None:
    rows = _rows(_preference(tiny, type="dpo"), tiny)
    chosen, rejected = _log_ratios(other, tiny, rows)
    found = implicit_accuracy(_preference(tiny, type="dpo").method, other, tiny, rows)
    assert found["heldout_accuracy"] == float((chosen > rejected).float().mean())
    assert found["pairs_heldout"] == ROWS
    same = implicit_accuracy(_preference(tiny, type="dpo").method, tiny, tiny, rows)
    assert same["heldout_accuracy"] == 0.5, "equal rewards are no success"
