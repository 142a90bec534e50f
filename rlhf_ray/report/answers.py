"""Held-out answers before and after training, paired, and the choice of those that the page shows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, object]
_LONGEST = 6000  # characters of one text on the page


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the page shows it."""

    text: str
    reward: float | None
    tokens: int
    cut_off: bool
    error: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The two answers to one prompt; `context` holds the other turns as (role, text)."""

    prompt: str
    context: list[tuple[str, str]]
    before: Answer
    after: Answer

    @property
    def gain(self) -> float | None:
        """Reward after minus before, None if either is unknown."""
        if self.before.reward is None or self.after.reward is None:
            return None
        return self.after.reward - self.before.reward


def choose(before: Sequence[Row], after: Sequence[Row], each: int = 4) -> list[tuple[str, list[Comparison]]]:
    """Titled groups of comparisons, `each` at most: the biggest gains, the middle ones, the smallest (or losses).

    The groups are chosen by rank, never by looks; one answer a prompt (its first sample).
    """
    firsts = {row["prompt_id"]: row for row in sorted(after, key=_sample, reverse=True)}
    pairs = []
    for row in {row["prompt_id"]: row for row in sorted(before, key=_sample, reverse=True)}.values():
        partner = firsts.get(row["prompt_id"])
        if partner is not None:
            pairs.append(Comparison(text_of(row, "prompt"), context_of(row), answer_of(row), answer_of(partner)))
    ranked = sorted((pair for pair in pairs if pair.gain is not None), key=lambda pair: -(pair.gain or 0.0))
    each = min(each, -(-len(ranked) // 3))
    low = max(each, len(ranked) - each)
    start = max(each, min((len(ranked) - each) // 2, low - each))
    groups = [
        ("Biggest gains", ranked[:each]),
        ("In the middle", ranked[start : min(start + each, low)]),
        ("Smallest gains, or losses", ranked[low:]),
        ("Without a reward", [pair for pair in pairs if pair.gain is None][:each]),
    ]
    return [(title, chosen) for title, chosen in groups if chosen]


def rewards_by_prompt(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[float, float]]:
    """(before, after) mean reward of each prompt that has both, biggest gain first."""
    first, last = _means(before), _means(after)
    pairs = [(first[prompt], last[prompt]) for prompt in first if prompt in last]
    return sorted(pairs, key=lambda pair: pair[0] - pair[1])


def _means(rows: Sequence[Row]) -> dict[object, float]:
    rewards: defaultdict[object, list[float]] = defaultdict(list)
    for row in rows:
        reward = row["reward"]
        if isinstance(reward, float):
            rewards[row["prompt_id"]].append(reward)
    return {prompt: sum(values) / len(values) for prompt, values in rewards.items()}


def answer_of(row: Row) -> Answer:
    """The answer in a row of a table of rollouts."""
    reward, tokens = row["reward"], row["response_tokens"]
    return Answer(
        text=text_of(row, "response"),
        reward=reward if isinstance(reward, float) else None,
        tokens=tokens if isinstance(tokens, int) else 0,
        cut_off=row["finish_reason"] == "length",
        error=text_of(row, "error"),
    )


def context_of(row: Row) -> list[tuple[str, str]]:
    """As (role, text): all turns but the last one, which is the question itself."""
    turns: object = json.loads(str(row["messages"]))
    if not isinstance(turns, list):
        return []
    return [(str(turn["role"]), _cut(str(turn["content"]))) for turn in turns[:-1]]


def text_of(row: Row, key: str) -> str:
    """The text under `key` as the page shows it, "" if there is none."""
    value = row[key]
    return "" if value is None else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " [shortened on this page]"


def _sample(row: Row) -> int:
    sample = row["sample_index"]
    return sample if isinstance(sample, int) else 0
