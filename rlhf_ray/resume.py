"""What may happen to a run directory that exists: one writer at a time, and no silent change of what was learned."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from rlhf_ray.config import AnyConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.errors import UserError
from rlhf_ray.rundir.commit import replace_file

_LEFT_OVER_S = 60.0
_POLL_S = 0.1
_MAY_CHANGE = frozenset({"train", "placement", "sentinels", "name"})


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
    changed = sorted(key for key in after if before.get(key) != after[key] and key not in _MAY_CHANGE)
    if changed:
        raise UserError(
            f"--resume: {', '.join(changed)} differ from {run_dir / 'config.yaml'}; a resumed run may change only "
            f"{', '.join(sorted(_MAY_CHANGE))}. Start a new run directory for the rest"
        )
    replace_file(run_dir / "config.yaml", dump_config(config))
