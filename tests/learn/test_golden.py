"""The numbers of `golden.json`: the same bits from run to run, and the same to three digits from machine to machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.learn.golden import GOLDEN, curves


def test_the_first_steps_are_the_same_bits_again_and_the_golden_numbers(tmp_path: Path) -> None:
    one, other = curves(tmp_path / "one"), curves(tmp_path / "other")
    assert one == other
    golden = json.loads(GOLDEN.read_text())
    assert one.keys() == golden.keys()
    for method, steps in golden.items():
        for step, (found, expected) in enumerate(zip(one[method], steps, strict=True), start=1):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), f"{method}, step {step}"
