"""The Python API: a tiny model learns what is easy to see, is saved, and ranks from its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_ray.errors import RunError, UserError
from rlhf_ray.evidence import Evidence, Label, Pair, Ranking, Rating, Thumb
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.tiny import tiny_encoder, tiny_model
from rlhf_ray.preference_api import (
    MultiObjectiveRewardModel,
    PreferenceDataset,
    RewardModel,
    RewardModelInference,
    RewardModelTrainer,
    create_reward_model,
)
from rlhf_ray.types import Message

GOOD, BAD = ["great", "good", "nice", "best"], ["bad", "sad", "false", "sorry"]
SETTINGS: dict[str, dict[str, Any]] = {
    "joint": {},
    "separate": {},
    "multi_objective": {"objectives": ("helpful", "kind"), "gate": True},
    "ensemble": {"members": 3},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "decoder": tiny_model(tmp_path_factory.mktemp("decoder")),
        "encoder": tiny_encoder(tmp_path_factory.mktemp("encoder")),
    }


def _mixed(count: int, objectives: tuple[str, ...] = ("overall",)) -> list[Evidence]:
    """Evidence of all kinds in which the answer with a friendly word is the better one."""
    found: list[Evidence] = []
    for i in range(count):
        ask = (Message("user", f"tell me about {['the sun', 'a tree', 'a cat', 'my house', 'a book'][i % 5]} {i}"),)
        label = Label(f"row {i}", objectives[i % len(objectives)])
        good, bad = f"this is {GOOD[i % 4]} number {i}", f"this is {BAD[i // 4 % 4]} number {i}"
        found += [
            Pair(ask, good, bad, label),
            Ranking(ask, (good, f"this is number {i}", bad), (1, 2, 3), label),
            Rating(ask, good, 5.0, label),
            Rating(ask, bad, 1.0, label),
            Thumb(ask, bad, False, label),
        ]
    return found


@pytest.mark.parametrize("backbone", ["decoder", "encoder"])
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_it_learns_saves_and_ranks(bases: dict[str, Path], tmp_path: Path, backbone: str, kind: str) -> None:
    model = create_reward_model(kind, str(bases[backbone]), max_tokens=96, **SETTINGS[kind])  # type: ignore[arg-type]  # one of the four
    data = PreferenceDataset(_mixed(16, model.network.spec.objectives), model.encoder)
    trainer = RewardModelTrainer(model, total_steps=30, learning_rate=2e-3)
    steps = [trainer.train_step(batch) for epoch in range(3) for batch in data.batches(8, seed=epoch)]
    assert len(steps) == 30
    first, last = steps[:8], steps[-8:]
    assert sum(s["loss"] for s in last) < 0.5 * sum(s["loss"] for s in first)
    accuracies = [s["accuracy"] for s in last if not math.isnan(s["accuracy"])]
    assert sum(accuracies) / len(accuracies) > 0.9
    assert all(s["grad_norm"] > 0 for s in steps)
    model.save(tmp_path / "reward")

    asked = "tell me about the moon"
    responses = ["this is bad number 30", "this is best number 31", "this is false number 32", "this is nice number 33"]
    saved = RewardModelInference(tmp_path / "reward")
    ranked = saved.rank_responses(asked, responses)
    assert {r.response for r in ranked[:2]} == {responses[1], responses[3]}
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    assert saved.batch_predict([([Message("user", asked)], r.response) for r in ranked]) == pytest.approx(
        [r.score for r in ranked], abs=1e-4
    )
    live = RewardModelInference(model).rank_responses([{"role": "user", "content": asked}], responses)
    assert [r.response for r in live] == [r.response for r in ranked]
    scorer = RewardScorer.load(tmp_path / "reward")  # as a reward actor does
    assert scorer.standardised
    assert [d.total for d in scorer.details([((Message("user", asked),), ranked[0].response)])] == pytest.approx(
        [ranked[0].score], abs=1e-4
    )


def test_the_schedule_warms_up_and_ends_at_zero(bases: dict[str, Path]) -> None:
    model = RewardModel(str(bases["encoder"]), max_tokens=64)
    data = PreferenceDataset(_mixed(1), model.encoder)
    trainer = RewardModelTrainer(model, total_steps=10, learning_rate=1.0, warmup_fraction=0.2, max_grad_norm=1e-9)
    (batch,) = data.batches(8, seed=0)
    rates = [trainer.train_step(batch)["learning_rate"] for _ in range(11)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    assert rates == pytest.approx([0.5, 1.0, *cosine], abs=1e-6)


def test_clipping_bounds_the_step(bases: dict[str, Path]) -> None:
    model = RewardModel(str(bases["encoder"]), max_tokens=64)
    (batch,) = PreferenceDataset(_mixed(1), model.encoder).batches(8, seed=0)
    trainer = RewardModelTrainer(model, total_steps=10, max_grad_norm=0.125)
    assert trainer.train_step(batch)["grad_norm"] > 0.125
    squares = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert math.sqrt(squares) == pytest.approx(0.125, rel=1e-3)


def test_gradients_do_not_pile_up(bases: dict[str, Path]) -> None:
    model = RewardModel(str(bases["encoder"]), max_tokens=64)
    (batch,) = PreferenceDataset(_mixed(1), model.encoder).batches(8, seed=0)
    trainer = RewardModelTrainer(model, total_steps=10, learning_rate=1e-12, max_grad_norm=1e9)
    first, second = (trainer.train_step(batch)["grad_norm"] for _ in range(2))
    assert second == pytest.approx(first, rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing(bases: dict[str, Path]) -> None:
    model = RewardModel(str(bases["encoder"]), max_tokens=64)
    (batch,) = PreferenceDataset(_mixed(1), model.encoder).batches(8, seed=0)
    with torch.no_grad():
        model.network.heads.weight[:] = torch.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RunError, match="not finite"):
        RewardModelTrainer(model, total_steps=10).train_step(batch)
    assert all(torch.equal(v.nan_to_num(), before[name].nan_to_num()) for name, v in model.state_dict().items())


def test_forward_gives_the_total_and_each_objective(bases: dict[str, Path]) -> None:
    weights = {"helpful": 0.25, "honest": 0.75}
    model = MultiObjectiveRewardModel(str(bases["decoder"]), ["helpful", "honest"], weights=weights, max_tokens=64)
    total, rewards = model(model.tokenize([("Hi", "Hello."), ("Hi", "No.")]))
    assert total.shape == (2,) and list(rewards) == ["helpful", "honest"]
    assert torch.allclose(total, 0.25 * rewards["helpful"] + 0.75 * rewards["honest"], atol=1e-6)
    total.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.network.heads.parameters())


def test_a_file_becomes_a_dataset(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "chosen": "good", "rejected": "bad"} for i in range(10)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = RewardModel(str(bases["encoder"]), max_tokens=64)
    parts = [
        PreferenceDataset.from_file(file, model.encoder, part, heldout_fraction=0.3) for part in ("train", "heldout")
    ]  # type: ignore[arg-type]  # the two of them
    assert [len(part) for part in parts] == [7, 3]
    prompts = [{part[i].item.prompt for i in range(len(part))} for part in parts]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 10
    loader = DataLoader(parts[0], batch_size=4, collate_fn=parts[0].collate)
    assert sorted(len(batch) for batch in loader) == [3, 4]
    with pytest.raises(UserError, match=r"from_file: heldout_fractoin"):
        PreferenceDataset.from_file(file, model.encoder, heldout_fractoin=0.3)


def test_mistakes_are_named(bases: dict[str, Path], tmp_path: Path) -> None:
    base = str(bases["encoder"])
    with pytest.raises(UserError, match="kind 'jiont'"):
        create_reward_model("jiont", base)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(UserError, match="memebrs: Extra inputs"):
        create_reward_model("ensemble", base, memebrs=3)
    with pytest.raises(UserError, match="at least two members"):
        create_reward_model("ensemble", base, members=1)
    with pytest.raises(UserError, match="at least two, such as"):
        create_reward_model("multi_objective", base)
    with pytest.raises(UserError, match="at least two, such as"):
        MultiObjectiveRewardModel(base, "helpful")
    with pytest.raises(UserError, match="weights must name exactly"):
        create_reward_model("multi_objective", base, objectives=("a", "b"), weights={"a": 1.0})
    with pytest.raises(UserError, match="give one of the two"):
        create_reward_model("multi_objective", base, objectives=("a", "b"), weights={"a": 1.0, "b": 1.0}, gate=True)
    with pytest.raises(UserError, match="needs architecture = separate"):
        create_reward_model("joint", base, shared=True)
    model = create_reward_model("joint", base, max_tokens=64)
    with pytest.raises(UserError, match="has not been trained"):
        model.save(tmp_path / "m")
    with pytest.raises(UserError, match="exists already"):
        model.save(tmp_path)
    with pytest.raises(UserError, match="no preference"):
        PreferenceDataset([], model.encoder)
    with pytest.raises(UserError, match="needs role and content"):
        RewardModelInference(model).batch_predict([([{"role": "user", "text": "Hi"}], "Hello.")])
