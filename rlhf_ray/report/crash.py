"""What a reader wants to know of a run that failed: what came first, what is lost, what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from rlhf_ray.report.facts import number, plural
from rlhf_ray.report.files import RunFiles
from rlhf_ray.report.timeline import finished_steps
from rlhf_ray.rundir.commit import latest_commit
from rlhf_ray.rundir.journal import read_phase

FAULTS = ("hung", "stalled", "revived", "damaged_checkpoint", "lost", "restart", "failed")
"""Kinds of events that tell of something that went wrong."""
_ENDS = ("failed", "lost")
_ADVICE = {
    r"rollouts of the step failed to be scored": "Mend the reward source that the message names; then resume.",
    r"No space left|ENOSPC|disk quota": "Free some disk, or lower train.keep_checkpoints; then resume.",
    r"OutOfMemory|\bOOM\b|out of memory|low on memory|MemoryError": "Lower policy.microbatch_tokens or "
    "rollout.max_concurrent (of a run on fixed data train.microbatch_size), or use more ranks; then resume.",
    r"did not finish|did not answer": "The event 'stalled' in events.jsonl has the stacks of all actors. If the "
    "machine was only busy, resume with a longer train.deadline_s.",
    r"gave no sign|stopped by a signal": "If the machine was only busy, or somebody had stopped it, resume; "
    "ranks on fixed data with a longer train.deadline_s.",
    r"\bNaN\b|not finite|non-finite": "Look at the last steps below. `rlhf-ray fork` begins at a checkpoint before "
    "them with a lower learning rate.",
    r"ended by SIGKILL": "The kernel kills what takes too much memory, and says so in `dmesg`; `rlhf-ray doctor "
    "CONFIG` says what a run of several models takes. Then resume.",
}
_ELSE = "If the message names your code or your data, mend it; then resume."


def crash(files: RunFiles) -> list[tuple[str, str]]:
    """Questions and answers; none if the run has not failed, or has reached its end after all."""
    survived = _last_step_done(files)
    told = [
        event
        for event in _of_the_last_try(files.events)
        if event.get("kind") in FAULTS and (event["kind"] in _ENDS or float(str(event["time"])) > survived)
    ]
    ends = [event for event in told if event.get("kind") in _ENDS]
    if files.summary.get("finished") or not ends:
        return []
    first, last = _sentence(told[0]), _sentence(ends[-1])
    found = [("What failed first", first)]
    if last != first:
        found.append(("What ended the run", last))
    phase = read_phase(files.path)
    if phase:
        found.append(("What it was doing", f"step {phase['step']}, {phase['phase']}"))
    recovered = sum(event.get("kind") in ("revived", "restart", "hung") for event in files.events)
    if recovered:
        found.append(("Deaths, hangs and restarts before", f"{recovered}"))
    found.append(("What is lost", _lost(files)))
    advice = next((text for sign, text in _ADVICE.items() if re.search(sign, f"{first} {last}", re.IGNORECASE)), _ELSE)
    return [*found, ("What to do", f"{advice} {_resume(files)}")]


def _of_the_last_try(events: Sequence[Mapping[str, object]]) -> Sequence[Mapping[str, object]]:
    starts = [i for i, event in enumerate(events) if event.get("kind") == "resume"]
    return events[starts[-1] :] if starts else events


def _last_step_done(files: RunFiles) -> float:
    """When the last step was finished: what went wrong before was survived, and is not why the run failed."""
    last = finished_steps(files.path)[-1:]
    return max((end for _, lanes in last for spans in lanes.values() for _, end in spans), default=0.0)


def _sentence(event: Mapping[str, object]) -> str:
    return str(event.get("sentence", "")).partition("\n")[0]


def _lost(files: RunFiles) -> str:
    commit = latest_commit(files.path / "checkpoints")
    done = max((int(number(record, "step") or 0) for record in files.records), default=0)
    if commit is None:
        return f"No prompt and no answer. There is no checkpoint yet: {plural(done, 'step')} will be done again."
    step = int(re.sub(r"\D", "", commit.path.name))
    return (
        f"No prompt and no answer. {commit.path.name} is whole; {plural(max(0, done - step), 'step')} after it will be "
        "done again, with the same prompts."
    )


def _resume(files: RunFiles) -> str:
    command = str(files.manifest.get("command") or f"rlhf-ray train {shlex.quote(str(files.path / 'config.yaml'))}")
    return f"Resume with: {command}" + ("" if "--resume" in command else " --resume")
