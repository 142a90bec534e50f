"""Reward sources add up, and what is not a number never becomes one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rlhf_ray.errors import UserError
from rlhf_ray.rewards.functions import FunctionReward, load_function
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.types import Message, Prompt, Rollout


class Fixed:
    """Answers with the given values in turn."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def score(self, rollouts: Sequence[Rollout]) -> Sequence[float | Exception]:
        return list(self._values[: len(rollouts)])  # type: ignore[arg-type]  # wrong types are what is tested


def _rollouts(count: int) -> list[Rollout]:
    prompt = Prompt("p", (Message("user", "first"), Message("assistant", "x"), Message("user", "last")), (1,), "gold")
    return [Rollout(prompt, i, (2,), (-1.0,), f"answer {i}", "stop", 0) for i in range(count)]


def test_the_reward_is_the_weighted_sum_and_the_breakdown_is_kept() -> None:
    rubric = Rubric([("kind", 1.0, Fixed(2.0, 3)), ("short", -0.5, Fixed(4.0, 0.0))])
    first, second = rubric.score(_rollouts(2))
    assert (first.reward, dict(first.breakdown), first.error) == (0.0, {"kind": 2.0, "short": 4.0}, None)
    assert (second.reward, dict(second.breakdown), second.error) == (3.0, {"kind": 3.0, "short": 0.0}, None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "expected a number of size 1e12 at most, got nan"),
        (math.inf, "expected a number of size 1e12 at most, got inf"),
        (-math.inf, "expected a number of size 1e12 at most, got -inf"),
        ("0.5", "expected a number, got str"),
        (True, "expected a number, got bool"),
        (None, "expected a number, got NoneType"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_not_a_number_is_an_error_and_never_0(value: object, reason: str) -> None:
    rubric = Rubric([("good", 1.0, Fixed(0.5, 0.5)), ("bad", 0.0, Fixed(value, 1.0))])
    first, second = rubric.score(_rollouts(2))
    assert first.error == f"bad: {reason}" and math.isnan(first.reward)
    assert dict(first.breakdown) == {"good": 0.5}, "the sources that answered stay visible"
    assert (second.reward, second.error) == (0.5, None), "a fault of one rollout must not touch its neighbours"


def test_all_faults_are_named() -> None:
    (score,) = Rubric([("a", 1.0, Fixed("x")), ("b", 1.0, Fixed(math.nan))]).score(_rollouts(1))
    assert score.error == "a: expected a number, got str; b: expected a number of size 1e12 at most, got nan"


def raises_at_1(prompt: str, response: str, reference: str | None) -> float:
    if response == "answer 1":
        raise RuntimeError("no answer")
    return float(len(prompt)) if reference == "gold" else -1.0


def test_a_function_that_raises_is_an_error_of_that_rollout_alone() -> None:
    """The function gets the last user message and the reference answer."""
    scores = Rubric([("f", 2.0, FunctionReward(load_function(f"{__name__}:raises_at_1")))]).score(_rollouts(3))
    assert [score.error for score in scores] == [None, "f: RuntimeError: no answer", None]
    assert scores[0].reward == scores[2].reward == 2.0 * len("last")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:f", "cannot import no_such_module_here"),
        ("math:no_such_function", "math has no no_such_function"),
        ("math:pi", "it is a float, not a function"),
    ],
)
def test_a_wrong_path_is_one_clear_error(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_function(path)
