"""Collation, minibatches and token-budgeted microbatches."""

from __future__ import annotations

from itertools import chain
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.batching import collate, microbatches, minibatches, prompt_numbers
from rlhf_ray.types import FinishReason, Message, Prompt, Rollout, Score

PAD = 0


def rollout(
    prompt: tuple[int, ...] = (5, 6),
    response: tuple[int, ...] = (7, 8, 9),
    finish: FinishReason = "stop",
    score: Score | None = Score(1.0),  # noqa: B008  # frozen
    logprobs: tuple[float, ...] | None = None,
    of: str = "p1",
) -> Rollout:
    return Rollout(
        prompt=Prompt(of, (Message("user", "hi"),), prompt),
        sample_index=3,
        response_ids=response,
        rollout_logprobs=logprobs if logprobs is not None else tuple(-0.5 * (i + 1) for i in range(len(response))),
        text="text",
        finish_reason=finish,
        policy_version=0,
        score=score,
    )


def test_collate_pads_on_the_right_and_marks_the_response() -> None:
    batch = collate([rollout(), rollout((4,), (3, PAD))], PAD, "score", penalty=1.0)
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, PAD, PAD, PAD]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    # The sampled token that equals the padding (an end of sequence, often) is part of the response.
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert torch.equal(batch.loss_mask, batch.response_mask)
    assert batch.rollout_logprobs.tolist() == [[0, 0, -0.5, -1.0, -1.5], [0, -0.5, -1.0, 0, 0]]
    assert batch.rewards.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("mode", "rewards", "loss_tokens"), [("penalize", [1.0, -1.5], 6), ("mask", [1.0, 1.0], 3), ("score", [1, 1], 6)]
)
def test_truncated_responses(
    mode: Literal["penalize", "mask", "score"], rewards: list[float], loss_tokens: int
) -> None:
    batch = collate([rollout(), rollout(finish="length")], PAD, mode, penalty=2.5)
    assert batch.truncated.tolist() == [False, True]
    assert batch.rewards.tolist() == rewards
    assert batch.loss_mask[0].sum() == 3
    assert batch.loss_mask.sum() == loss_tokens
    assert batch.response_mask.sum() == 6


def test_a_response_that_ends_at_exactly_the_limit_is_not_truncated() -> None:
    """The longest rows of the batch, no padding, one ended by the policy and one by the limit."""
    for mode in ("penalize", "mask"):
        batch = collate([rollout(finish="stop"), rollout(finish="length")], PAD, mode, penalty=1.0)
        assert batch.attention_mask.all()
        assert batch.truncated.tolist() == [False, True]
        assert batch.rewards[0] == 1.0
        assert batch.loss_mask[0].sum() == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rollout(score=None), "p1/3 was not scored"),
        (rollout(score=Score(0.0, error="timed out")), "timed out"),
        (rollout(score=Score(float("nan"))), "reward nan"),
        (rollout(response=()), "empty"),
        (rollout(logprobs=(-1.0,)), "1 log-probabilities for 3"),
    ],
)
def test_an_unusable_rollout_is_named(bad: Rollout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate([rollout(), bad], PAD, "score", penalty=0.0)


def test_no_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="no rollouts"):
        collate([], PAD, "score", penalty=0.0)


def test_rows_know_whose_answers_they_are() -> None:
    """Also when quarantine has left gaps, and when a prompt comes a second time."""
    rollouts = [rollout(of=name) for name in ("b", "b", "a", "c", "c", "b")]
    assert prompt_numbers(rollouts).tolist() == [0, 0, 1, 2, 2, 0]


def test_minibatches_are_seeded_and_differ_between_epochs() -> None:
    def epochs(seed: int) -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        return [[part.tolist() for part in minibatches(12, 3, generator)] for _ in range(2)]

    first, second = epochs(1)
    assert [len(part) for part in first] == [4, 4, 4]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second
    assert epochs(1) == [first, second]
    assert epochs(2) != [first, second]


def test_minibatches_lose_no_row_when_some_were_quarantined() -> None:
    parts = minibatches(11, 3, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(11))
    with pytest.raises(ValueError, match="2 rollouts cannot fill 3"):
        minibatches(2, 3, torch.Generator())


def test_minibatches_cut_between_units_only() -> None:
    parts = minibatches(14, 3, torch.Generator().manual_seed(0), unit=2)
    assert [len(part) for part in parts] == [6, 4, 4]
    pairs = torch.cat(parts).view(-1, 2)
    assert torch.equal(pairs[:, 1], pairs[:, 0] + 1) and sorted(pairs[:, 0].tolist()) == list(range(0, 14, 2))
    assert pairs[:, 0].tolist() != list(range(0, 14, 2))
    with pytest.raises(ValueError, match="6 rollouts in units of 2 cannot fill 4"):
        minibatches(6, 4, torch.Generator(), unit=2)
    with pytest.raises(ValueError, match="7 rollouts in units of 2"):
        minibatches(7, 2, torch.Generator(), unit=2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=20), st.integers(1, 4), st.integers(1, 300))
def test_microbatches_keep_pairs_together(pairs: list[tuple[int, int]], num_ranks: int, max_tokens: int) -> None:
    lengths = torch.tensor(list(chain(*pairs)), dtype=torch.long)
    ranks = microbatches(lengths, num_ranks, max_tokens, unit=2)
    assert len(ranks) == num_ranks and len({len(rank) for rank in ranks}) == 1
    parts = [part.tolist() for rank in ranks for part in rank]
    assert sorted(chain(*parts)) == list(range(len(lengths)))
    for part in parts:
        assert all(row % 2 == 0 for row in part[::2]) and part[1::2] == [row + 1 for row in part[::2]]
        assert len(part) <= 2 or len(part) * max(lengths[part].tolist()) <= max_tokens
    longest = torch.tensor([max(pair) for pair in pairs], dtype=torch.long)
    fewest = microbatches(longest, num_ranks, max(1, max_tokens // 2))
    assert [len(rank) for rank in ranks] == [len(rank) for rank in fewest], "and no more of them than needed"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 5), st.integers(1, 150))
def test_microbatches_keep_their_promises(lengths: list[int], num_ranks: int, max_tokens: int) -> None:
    ranks = microbatches(torch.tensor(lengths, dtype=torch.long), num_ranks, max_tokens)
    assert len(ranks) == num_ranks
    assert len({len(rank) for rank in ranks}) == 1
    parts = [part.tolist() for rank in ranks for part in rank]
    assert sorted(chain(*parts)) == list(range(len(lengths)))
    for part in parts:
        picked = [lengths[row] for row in part]
        assert len(part) <= 1 or len(part) * max(picked) <= max_tokens
    # In a round of one microbatch a rank the ranks have as many rows, give or take one.
    for together in zip(*ranks, strict=True):
        sizes = [part.numel() for part in together]
        assert max(sizes) - min(sizes) <= 1
    if not all(parts):
        # There are fewer rows than microbatches, so no other split could fill them all.
        assert len(lengths) < num_ranks * len(ranks[0])
    if num_ranks == 1:
        assert all(parts)


@pytest.mark.parametrize(
    ("lengths", "num_ranks", "max_tokens", "tokens"),
    [
        ([10] * 8, 1, 80, [[80]]),
        ([10] * 8, 2, 80, [[40], [40]]),
        ([10] * 9, 2, 40, [[40, 10], [30, 10]]),  # the last round borrows a row instead of leaving a rank idle
        ([100, 10, 10], 1, 20, [[100, 20]]),
        ([30, 30, 30], 2, 30, [[30, 30], [30, 0]]),
        ([1, 50, 2, 49], 2, 60, [[50, 1], [49, 2]]),  # the rank that had less so far takes more
    ],
)
def test_microbatches_by_hand(lengths: list[int], num_ranks: int, max_tokens: int, tokens: list[list[int]]) -> None:
    ranks = microbatches(torch.tensor(lengths), num_ranks, max_tokens)
    padded = [[len(p) * int(torch.tensor(lengths)[p].max()) if len(p) else 0 for p in rank] for rank in ranks]
    assert sorted(padded, reverse=True) == sorted(tokens, reverse=True)


def test_microbatches_do_not_mix_long_and_short_rows() -> None:
    lengths = torch.tensor([100, 1] * 8)
    ranks = microbatches(lengths, 1, 400)
    padded = sum(part.numel() * int(lengths[part].max()) for part in ranks[0])
    assert padded <= 1.1 * int(lengths.sum()) + 400
    assert all(len(set(lengths[part].tolist())) == 1 for part in ranks[0])


def test_microbatches_refuse_empty_rows() -> None:
    with pytest.raises(ValueError, match="positive"):
        microbatches(torch.tensor([3, 0]), 1, 10)
