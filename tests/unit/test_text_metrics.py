"""Text numbers against slow oracles, and the memory sampler against a process of known size."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import pytest

from rlhf_ray.evaluation.memory import PeakMemory, memory_bytes
from rlhf_ray.evaluation.text import distinct_n, paired_bootstrap, perplexity


def test_distinct_n_by_hand_and_by_counting() -> None:
    assert distinct_n([[1, 2, 3, 1, 2]], 2) == 3 / 4
    assert distinct_n([[1, 2], [2, 1], [1, 2]], 2) == 2 / 3
    assert distinct_n([[1, 1, 1]], 1) == 1 / 3
    assert distinct_n([[], [7]], 2) == 0.0
    rng = random.Random(0)
    texts = [[rng.randrange(5) for _ in range(rng.randrange(9))] for _ in range(20)]
    seen: list[str] = []
    for text in texts:
        for left, right in itertools.pairwise(text):
            seen.append(f"{left},{right}")
    unique = [pair for index, pair in enumerate(seen) if pair not in seen[:index]]
    assert distinct_n(texts, 2) == len(unique) / len(seen)
    with pytest.raises(ValueError, match="n = 0"):
        distinct_n(texts, 0)


def test_perplexity_is_the_inverse_geometric_mean() -> None:
    assert perplexity([[math.log(0.5)] * 3, [math.log(0.5)]]) == pytest.approx(2.0)
    chances = [[0.5, 0.25], [0.1]]
    product = 0.5 * 0.25 * 0.1
    assert perplexity([[math.log(p) for p in text] for text in chances]) == pytest.approx(product ** (-1 / 3))
    assert perplexity([[-1e6]]) == math.inf
    with pytest.raises(ValueError, match="no tokens"):
        perplexity([[], []])


def test_bootstrap_agrees_with_the_exact_distribution() -> None:
    """Four prompts have 4^4 equally likely resamples: enumerate them all."""
    before, after = [0.0, 1.0, 2.0, 0.5], [1.0, 1.5, 1.0, 3.0]
    gains = [b - a for a, b in zip(before, after, strict=True)]
    exact = sorted(sum(draw) / 4 for draw in itertools.product(gains, repeat=4))
    mean, (low, high) = paired_bootstrap(before, after, seed=0, samples=20_000)
    assert mean == pytest.approx(sum(gains) / 4)
    assert low == pytest.approx(exact[int(0.025 * 256)], abs=0.13)
    assert high == pytest.approx(exact[int(0.975 * 256)], abs=0.13)


def test_bootstrap_is_paired_seeded_and_matches_the_normal_interval() -> None:
    rng = random.Random(1)
    before = [rng.gauss(0, 50) for _ in range(400)]
    after = [value + rng.gauss(0.5, 1) for value in before]
    gains = [b - a for a, b in zip(before, after, strict=True)]
    mean, (low, high) = paired_bootstrap(before, after, seed=3)
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / len(gains))
    assert low == pytest.approx(mean - 1.96 * deviation / 20, abs=0.01)
    assert high == pytest.approx(mean + 1.96 * deviation / 20, abs=0.01)
    assert paired_bootstrap(before, after, seed=3) == (mean, (low, high))
    assert paired_bootstrap([1.0], [2.0], seed=0) == (1.0, (1.0, 1.0))
    for broken in (([], []), ([1.0], [1.0, 2.0]), ([1.0], [math.nan])):
        with pytest.raises(ValueError):
            paired_bootstrap(*broken, seed=0)


def test_peak_memory_sees_a_child_and_remembers_it() -> None:
    code = "import sys; block = b'x' * (200 << 20); print('ready', flush=True); sys.stdin.read()"
    with PeakMemory(interval_s=0.05) as peak:
        alone = peak.sample()
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        both = peak.sample()
        child.communicate(b"")
    assert 195 < (both - alone) / 2**20 < 260
    assert peak.peak_gib >= both / 2**30
    assert memory_bytes(child.pid) == 0


def test_core_seconds_count_each_process_once_and_those_that_are_gone() -> None:
    code = "import time, sys\nwhile time.process_time() < 0.6: pass\nprint('ready', flush=True); sys.stdin.read()"
    with PeakMemory(interval_s=60) as spent:
        before = spent.core_seconds
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        spent.sample()
        spent.sample()
        child.communicate(b"")
    assert 0.5 <= sum(s for (pid, _), s in spent.by_process.items() if pid == child.pid) < 1.5
    assert 0.5 <= spent.core_seconds - before < 4.0


def test_peak_memory_adds_named_processes_once() -> None:
    parent = PeakMemory().sample()
    named = PeakMemory(lambda: [1, 1, 2**22 + 1]).sample()
    assert named >= parent * 0.9
