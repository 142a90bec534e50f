"""What a run's metrics say about it, for its summary."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from rlhf_ray import metrics as names
from rlhf_ray.rundir.lines import read_lines


def measured(run_dir: Path, began: float) -> dict[str, object]:
    """What the run's metrics say about it; it began at `began` of the monotonic clock."""
    return {"seconds_training": time.monotonic() - began, "tokens_per_second": _speed(run_dir), **_last(run_dir)}


def _speed(run_dir: Path) -> float | None:
    """The median over steps, the first left out: it warms caches."""
    values = [record.get(names.TOKENS_PER_SECOND) for record in read_lines(run_dir / "metrics.jsonl")]
    known = [float(value) for value in values[1:] if isinstance(value, int | float)]
    return median(known) if known else None


def _last(run_dir: Path) -> dict[str, object]:
    """The last held-out loss, and where an adaptive beta ended with the KL that it followed, if there was one."""
    found: dict[str, object] = {}
    keys = {"beta_last": names.BETA, "kl_last": names.BETA_KL, "kl_target": names.BETA_TARGET_KL}
    keys["heldout_loss"] = names.HELDOUT_LOSS
    for record in read_lines(run_dir / "metrics.jsonl"):
        found |= {ours: record[name] for ours, name in keys.items() if name in record}
    return found
