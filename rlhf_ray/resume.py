"""What may happen to a run directory that exists: one writer at a time, and no silent change of what was learned."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config import AnyConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.errors import UserError
from rlhf_ray.rundir.commit import replace_file

_LEFT_OVER_S = 60.0
_POLL_S = 0.1
_MAY_CHANGE = ("name", "placement", "sentinels", "train")
_MEANS = frozenset({
    "num_workers", "cpus_per_worker", "gpus_per_worker", "zero_stage", "microbatch_tokens", "gradient_checkpointing",
    "replicas", "engines", "cpus", "gpus", "tensor_parallel", "max_concurrent", "kv_cache_gib",
    "gpu_memory_utilization", "push_bucket_mib",
})  # fmt: skip
"""Of the other sections: by which means a role computes, not what."""


@contextlib.contextmanager
def alone_in(run_dir: Path, name: str = ".lock", wait_s: float = 0.0) -> Iterator[None]:
    """Inside, no other process holds the lock `name` of `run_dir`; a `UserError` if one does after `wait_s`."""
    deadline = time.monotonic() + wait_s
    with (run_dir / name).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"{run_dir} is in use by another process: wait, or choose another --run-dir"
                    ) from None
                time.sleep(_POLL_S)
        yield


def only_writer(run_dir: Path) -> contextlib.ExitStack:
    """Until it is closed, or this process ends, no other one writes to the run. Waits for what is left of a driver that
    was killed: its controller may be at a commit."""
    held = contextlib.ExitStack()
    held.enter_context(alone_in(run_dir, ".writer", _LEFT_OVER_S))
    return held


def accept_changes(run_dir: Path, config: AnyConfig) -> None:
    """Makes `config` the one of the run at `run_dir`, unless it differs in what the checkpoint depends on."""
    old = load_config(run_dir / "config.yaml", [])
    before, after = old.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [key for key in _differing(before, after) if not _may_change(key)]
    if changed:
        raise UserError(
            f"--resume: {', '.join(changed)} differ from {run_dir / 'config.yaml'}; a resumed run may change only "
            f"{', '.join(_MAY_CHANGE)}, and of the rest {', '.join(sorted(_MEANS))}. For another value of the "
            "rest begin a new run, at a checkpoint of this one with `rlhf-ray fork`"
        )
    replace_file(run_dir / "config.yaml", dump_config(config))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Dotted keys, as far down as both have sections."""
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differing(old, new, f"{within}{key}.")
        elif old != new:
            yield f"{within}{key}"


def _may_change(key: str) -> bool:
    section, *within = key.split(".")
    return section in _MAY_CHANGE or (bool(within) and within[-1] in _MEANS)
