"""Checks of what happens to a batch on its way: masks, alignment, splits, and what has to survive a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from rlhf_ray.conformance import oracles
from rlhf_ray.conformance.comparison import Array, same, true
from rlhf_ray.conformance.logprobs import NextLogits

State = TypeVar("State")
Split = list[list[list[int]]]
"""For each rank its microbatches, each a list of row numbers."""
TURNS = np.array(
    [
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1],  # up to the last column
        [0, 1, 1, 0, 0, 1, 1, 1, 0, 0],  # an observation between two turns
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 0],  # padding
        [0, 1, 0, 1, 0, 0, 1, 0, 0, 0],  # turns of one token
        [0, 1, 1, 1, 0, 0, 0, 0, 0, 0],  # ends with an observation, of which padding is a case
    ],
    dtype=bool,
)
"""Action tokens of conversations: prompts, turns of the policy, observations between and after them, padding."""


def check_reward_placement(function: Callable[[Array, Array], Array]) -> None:
    """`function(rewards [B], mask [B, T]) -> [B, T]`: each reward on the row's last action token, 0 elsewhere."""
    rewards = np.arange(1.0, 1 + len(TURNS))
    want = [oracles.placed_reward(r, row) for r, row in zip(rewards.tolist(), TURNS.tolist(), strict=True)]
    same(function(rewards, TURNS), want, 0.0, "turns of the policy, observations, padding")


def check_returns_to_go(function: Callable[[Array, Array, float], Array], tolerance: float = 1e-5) -> None:
    """`function(rewards [B, T], mask [B, T], gamma) -> [B, T]`: discounted sums over the action tokens from each on,
    0 elsewhere. Elsewhere rewards may be NaN."""
    rewards = np.where(TURNS, np.random.default_rng(20).normal(size=TURNS.shape), float("nan"))
    for gamma in (1.0, 0.9, 0.5):
        rows = zip(rewards.tolist(), TURNS.tolist(), strict=True)
        want = [oracles.returns_to_go(r, m, gamma) for r, m in rows]
        same(function(rewards, TURNS, gamma), want, tolerance, f"gamma {gamma}")


def check_token_logprobs(
    function: Callable[[Array, Array, Array, float], Array],
    next_logits: NextLogits,
    vocabulary: int,
    eos: int,
    tolerance: float = 1e-4,
) -> None:
    """`function(token_ids [B, T], attention [B, T], actions [B, T], temperature) -> [B, T]`: the log-probability of
    each action token after all tokens before it, 0 elsewhere. Rows are padded on the right, with `eos` too, which also
    ends turns. `next_logits(prefix)` asks the same model for the logits after a prefix alone."""
    tokens = np.random.default_rng(21).integers(0, vocabulary, TURNS.shape)
    lengths = np.array([10, 8, 5, 9, 7])
    attention = np.arange(10) < lengths[:, None]
    for row, length in enumerate(lengths):
        last = np.flatnonzero(TURNS[row, :length])[-1]
        tokens[row, last] = eos
    for temperature in (1.0, 0.6):
        rows = zip(tokens.tolist(), TURNS.tolist(), strict=True)
        want = [oracles.token_logprobs(t, a, next_logits, temperature) for t, a in rows]
        for padding in (eos, 0, vocabulary - 1):
            ids = np.where(attention, tokens, padding)
            case = f"temperature {temperature}, padding {padding} (the end of sequence is {eos})"
            same(function(ids, attention, TURNS, temperature), want, tolerance, case)


def check_split_invariance(gradient: Callable[[Split], Array], num_rows: int, tolerance: float = 1e-5) -> None:
    """`gradient(split) -> [...]`: of one optimizer step on `num_rows` rows, computed in the microbatches and on the
    ranks of `split`. However they are cut, it is that of all rows at once."""
    rows = list(range(num_rows))
    whole = np.asarray(gradient([[rows]]), dtype=float)
    true(bool(np.abs(whole).max() > 0), "all rows at once: the gradient is 0, so nothing is compared")
    mixed = np.random.default_rng(22).permutation(num_rows).tolist()
    splits: dict[str, Split] = {
        "in another order": [[mixed]],
        "every row alone": [[[row] for row in rows]],
        "microbatches of different sizes": [[mixed[:1], mixed[1:]]],
        "two ranks": [[rows[::2]], [rows[1::2]]],
        "two ranks of different sizes": [[rows[:1]], [rows[1:]]],
        "two ranks with two microbatches each": [[mixed[:1], mixed[1:3]], [mixed[3:4], mixed[4:]]],
        "a rank for every row": [[[row]] for row in mixed],
        "a rank without rows": [[rows], [[]]],
    }
    for case, split in splits.items():
        same(gradient(split), whole, tolerance, case)


def check_truncation(function: Callable[[Array, Array, int], Array]) -> None:
    """`function(lengths [B], ended [B], limit) -> [B]`: whether a limit cut the response. One that ended by itself was
    not cut, at exactly the limit neither, and whatever the longest of the batch is."""
    for lengths in ([3, 8, 8, 5], [8, 8, 8, 8], [2, 3, 3, 1]):
        ended = np.array([length < 8 or i % 2 == 1 for i, length in enumerate(lengths)])
        found = np.asarray(function(np.array(lengths), ended, 8), dtype=bool)
        same(found, ~ended, 0.0, f"lengths {lengths} of at most 8, ended {ended.tolist()}")


def check_weight_checksum(function: Callable[[bytes], object], num_bytes: int = 65536) -> None:
    """`function(payload) -> checksum`: the same for the same bytes, another if a bit flips, words change places, data
    are shifted or a word is lost. `num_bytes` is a multiple of 64, and 1024 at least."""
    words = np.random.default_rng(23).integers(1, 2**40, num_bytes // 8, dtype=np.int64)
    sealed = function(words.tobytes())
    true(function(words.copy().tobytes()) == sealed, "the same bytes have two checksums")
    last = len(words) - 1
    for place in (0, 1, last // 2, last):
        for bit in (0, 31, 63):
            flipped = words.copy().view(np.uint64)
            flipped[place] ^= np.uint64(1) << np.uint64(bit)
            true(function(flipped.tobytes()) != sealed, f"bit {bit} of word {place} flipped: not seen")
    for one, other in ((0, 1), (0, last), (7, last // 2), (last - 1, last), (0, len(words) // 2)):
        swapped = words.copy()
        swapped[[one, other]] = words[[other, one]]
        true(function(swapped.tobytes()) != sealed, f"words {one} and {other} exchanged: not seen")
    true(function(np.roll(words, 1).tobytes()) != sealed, "all words shifted by one: not seen")
    eighth = len(words) // 8
    true(function(np.roll(words, eighth).tobytes()) != sealed, f"all words shifted by {eighth}: not seen")
    lost = words.copy()
    lost[last // 3] = 0
    true(function(lost.tobytes()) != sealed, "a word is lost: not seen")


def check_resume(
    make: Callable[[], State],
    step: Callable[[State, int], Sequence[float]],
    save: Callable[[State], object],
    load: Callable[[State, object], None],
    steps: int = 5,
) -> None:
    """`step(state, number)` moves `state` and says what was seen. Stopped after any step, saved as JSON and loaded into
    a new one, it goes on exactly as if it had not been stopped."""
    straight = make()
    seen = [step(straight, number) for number in range(steps)]
    for stop in range(1, steps):
        first, second = make(), make()
        for number in range(stop):
            step(first, number)
        load(second, json.loads(json.dumps(save(first))))
        rest = [step(second, number) for number in range(stop, steps)]
        true(rest == seen[stop:], f"stopped after {stop} steps it goes on with {rest}, not {seen[stop:]}")


def check_dynamic_sampling(
    function: Callable[[Callable[[int], list[int]], Callable[[int], bool], int], list[int]], tries: int = 50
) -> None:
    """`function(take, teaches, wanted) -> prompts`: asks `take(n)` for new prompts until `wanted` of those for which
    `teaches(prompt)` are found. None that was accepted is lost, repeated or left over for a later step."""
    for seed in range(tries):
        draw = np.random.default_rng(seed)
        good = draw.random(2000) < draw.uniform(0.2, 0.9)
        taken: list[int] = []
        used: list[int] = []

        def take(count: int, taken: list[int] = taken) -> list[int]:
            taken += range(len(taken), len(taken) + count)
            return taken[len(taken) - count :]

        for _ in range(4):
            wanted = int(draw.integers(1, 7))
            found = function(take, lambda prompt, good=good: bool(good[prompt]), wanted)  # type: ignore[misc]  # binds it
            true(len(found) == wanted, f"seed {seed}: asked for {wanted} prompts, found {found}")
            used += found
        true(sorted(used) == [prompt for prompt in taken if good[prompt]], f"seed {seed}: took {taken}, used {used}")
