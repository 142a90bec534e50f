"""Constrained PPO: what reward and cost become together, and how the price of cost moves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.ppo import PPOConfig
from rlhf_ray.algorithms.ppo_lagrangian import PPOLagrangian, PPOLagrangianConfig
from rlhf_ray.config import RunConfig
from rlhf_ray.rewards.functions import FunctionReward
from rlhf_ray.rewards.overlong import Overlong
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.types import Batch, Message, Prompt, Rollout
from tests.builders import random_batch, run_config

PROMPTS = torch.arange(4)
COSTS = torch.tensor([1.0, 0.0, 2.0, 1.0])


def _algorithm(**changes: object) -> PPOLagrangian:
    settings = {"type": "ppo_lagrangian", "cost_budget": 0.4, "multiplier": 0.5, "multiplier_rate": 0.1}
    return PPOLagrangianConfig.model_validate({**settings, **changes}).make()


def _batch() -> Batch:
    return random_batch(4, 12, 50).with_(costs=COSTS)


def test_advantages_are_ppos_of_the_priced_reward() -> None:
    batch = _batch()
    found, metrics = _algorithm().advantages(batch, PROMPTS)
    priced = batch.with_(rewards=(batch.rewards - 0.5 * COSTS) / 1.5)
    want, _ = PPOConfig().make().advantages(priced, PROMPTS)
    assert found.advantages is not None and want.advantages is not None
    torch.testing.assert_close(found.advantages, want.advantages)
    assert metrics[names.COST_MEAN] == 1.0 and metrics[names.MULTIPLIER] == 0.5


def test_the_price_rises_above_the_budget_falls_below_it_and_stays_in_its_range() -> None:
    algorithm, batch = _algorithm(), _batch()
    prices = [algorithm.advantages(batch, PROMPTS)[1][names.MULTIPLIER] for _ in range(3)]
    assert prices == pytest.approx([0.5, 0.5 * math.exp(0.06), 0.5 * math.exp(0.12)])  # 0.1 * (1 - 0.4)
    free = batch.with_(costs=torch.zeros(4))
    algorithm.advantages(free, PROMPTS)
    assert algorithm.advantages(free, PROMPTS)[1][names.MULTIPLIER] == pytest.approx(0.5 * math.exp(0.18 - 0.04))
    bounded = _algorithm(multiplier_range=(0.1, 0.52))
    for _ in range(5):
        metrics = bounded.advantages(batch, PROMPTS)[1]
    assert metrics[names.MULTIPLIER] == 0.52
    for _ in range(99):
        metrics = bounded.advantages(batch.with_(costs=COSTS - 1), PROMPTS)[1]
    assert metrics[names.MULTIPLIER] == pytest.approx(0.1)


def test_the_price_waits_while_the_policy_does_and_is_state() -> None:
    one, other = _algorithm(), _algorithm()
    one.advantages(_batch(), PROMPTS, adapt=False)
    assert one.state_dict()["multiplier"] == 0.5
    one.advantages(_batch(), PROMPTS)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.advantages(_batch(), PROMPTS)[1] == one.advantages(_batch(), PROMPTS)[1]


def _rollouts(*lengths: int) -> list[Rollout]:
    prompt = Prompt("p", (Message("user", "hello"),), (1,))
    return [Rollout(prompt, i, (2,) * n, (-1.0,) * n, "text", "stop", 0) for i, n in enumerate(lengths)]


def test_costs_are_no_part_of_the_reward() -> None:
    sources = [("good", 1.0, FunctionReward(lambda *_: 3.0)), ("harm", 0.5, FunctionReward(lambda *_: 4.0))]
    (score,) = Rubric(sources, costs=["harm"]).score(_rollouts(1))
    assert (score.reward, score.cost) == (3.0, 2.0) and score.breakdown == {"good": 3.0, "harm": 4.0}
    (score,) = Rubric(sources).score(_rollouts(1))
    assert (score.reward, score.cost) == (5.0, 0.0)


def test_the_overlong_penalty_is_a_ramp() -> None:
    # DAPO, equation 13, with 20 tokens at most and a buffer of 8: free to 12, -1 from 20.
    assert Overlong(20, 8).score(_rollouts(1, 12, 14, 18, 20, 25)) == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]


def _config(sources: list[dict[str, object]], algorithm: dict[str, object]) -> RunConfig:
    return run_config(Path("unused"), reward={"sources": sources}, algorithm=algorithm)


GOOD = {"type": "function", "path": "tests.builders:share_of_vowels", "name": "good"}
HARM = {**GOOD, "name": "harm", "cost": True}
LAGRANGIAN = {"type": "ppo_lagrangian", "cost_budget": 0.1}


@pytest.mark.parametrize(
    ("sources", "algorithm", "said"),
    [
        ([GOOD], LAGRANGIAN, "needs a reward source with `cost: true`"),
        ([GOOD, HARM], {"type": "ppo"}, "harm is a cost, which algorithm.type = ppo ignores"),
        ([HARM], LAGRANGIAN, "at least one must be a reward"),
        ([GOOD, GOOD], {"type": "ppo"}, "two sources have the same name"),
        ([GOOD, {"type": "overlong", "max_tokens": 99, "buffer": 4}], {"type": "ppo"}, "above rollout.max_new_tokens"),
        ([GOOD, {"type": "overlong", "max_tokens": 9, "buffer": 10}], {"type": "ppo"}, "longer than max_tokens = 9"),
        (
            [{"type": "model", "path": "a", "name": "a", "cost": True}, {"type": "model", "path": "b", "name": "b"}],
            LAGRANGIAN,
            "list the reward model before the cost model",
        ),
    ],
)
def test_sources_that_do_not_fit_the_algorithm_are_refused(
    sources: list[dict[str, object]], algorithm: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        _config(sources, algorithm)
    _config([GOOD, HARM], LAGRANGIAN)
