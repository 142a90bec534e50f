"""What is killed when: roles x phases, with another signal for each seed, in an order drawn from the seed."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_ray.config import RunConfig
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.tags import Process, processes

Lane = Literal["torch", "vllm"]
PHASES = ("idle", "generate", "score", "update", "push", "commit", "resume")
"""Idle: the controller computes advantages, and every other role waits."""
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)
"""Of seed 0, 1, 2, and so on in turn. The seeds 0, 1, 2 are for one run of PPO, 3, 4, 5 for one of GRPO, and so on."""
_STEPS_A_CELL, _SPARE_STEPS, _STEPS_WITHOUT_DRIVER = 2, 20, 15
"""A phase may be over before its victim is struck, then the next step has to do. A run goes on for the 3 s in which
nobody misses a driver that was stopped."""
OPENERS = ("driver", "controller", "policy inbox", "critic inbox")
"""Roles without which a run resumes at its newest commit."""
_ROLES: dict[str, tuple[str, str, int]] = {
    "driver": ("driver", "rlhf_ray.cli.main", 0),
    "controller": ("controller", "ray::Controller", 0),
    "policy inbox": ("policy inbox", "ray::Inbox", 0),
    "critic inbox": ("critic inbox", "ray::Inbox", 0),
    "Ray Train controller": ("policy inbox", "ray::TrainController", 0),
    "policy rank A": ("policy rank", "ray::RayTrainWorker", 0),
    "policy rank B": ("policy rank", "ray::RayTrainWorker", 1),
    "critic rank": ("critic rank", "ray::RayTrainWorker", 0),
    "rollout-0": ("rollout-0", "ray::RolloutActor", 0),
    "rollout-1": ("rollout-1", "ray::RolloutActor", 0),
    "reference-0": ("reference-0", "ray::ReferenceActor", 0),
    "reward-0": ("reward-0", "ray::RewardActor", 0),
}
"""The tag of its processes, how their title begins, and which of them, the oldest first."""
ROLES = tuple(_ROLES)


@dataclass(frozen=True, slots=True)
class Cell:
    """One square of the matrix."""

    role: str
    phase: str
    sign: signal.Signals


def cells(seed: int, roles: Sequence[str] = ROLES, phases: Sequence[str] = PHASES) -> list[Cell]:
    """All of a seed, in its own order; those in a resume come after others that make the run resume, if there are.
    GRPO has no critic."""
    played = [role for role in roles if not (_is_grpo(seed) and role.startswith("critic"))]
    found = [Cell(role, phase, SIGNALS[seed % len(SIGNALS)]) for role in played for phase in phases]
    random.Random(seed).shuffle(found)
    resumes = [cell for cell in found if cell.phase == "resume"]
    ordered: list[Cell] = []
    for cell in found:
        if cell.phase != "resume":
            ordered.append(cell)
            if cell.role in OPENERS and resumes:
                ordered.append(resumes.pop())
    return ordered + resumes


def steps_for(plan: Sequence[Cell]) -> int:
    """So long a run must be to be struck so often."""
    stopped = sum(cell.role == "driver" and cell.sign is signal.SIGSTOP for cell in plan)
    return _STEPS_A_CELL * len(plan) + _SPARE_STEPS + _STEPS_WITHOUT_DRIVER * stopped


def _is_grpo(seed: int) -> bool:
    return seed // len(SIGNALS) % 2 == 1


def victim(run: str, role: str) -> Process | None:
    """The living process of `run` that plays `role`, if there is one."""
    tag, title, number = _ROLES[role]
    found = [each for each in processes(run) if each.role == tag and title in each.title]
    return found[number] if number < len(found) else None


def successor(run: str, role: str, ticks: int) -> bool:
    """Whether a process that plays `role`, or its twin, was started at that time or later."""
    tag, title, _ = _ROLES[role]
    return any(each.role == tag and title in each.title and each.started >= ticks for each in processes(run))


def config(out: Path, seed: int, lane: Lane, steps: int) -> RunConfig:
    """A run of a tiny model with every role; its files are in a folder of `out`, which seeds share that have the same
    run but for its length.

    One process samples one answer at a time: what vLLM computes depends, in the last bits, on what it computes beside
    it. The torch engine needs no such care.
    """
    algorithm: dict[str, Any] = {"type": "grpo"} if _is_grpo(seed) else {"type": "ppo", "kl_target": 0.1}
    own = seed // len(SIGNALS)
    folder = out / f"{algorithm['type']}-{own}"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(24)))
    return RunConfig.model_validate(
        {
            "name": folder.name,
            "seed": own,
            "model": {"path": str(tiny_model(folder / "tiny"))},
            "prompts": {"path": str(prompts), "max_prompt_tokens": 64},
            "algorithm": {"kl_horizon": 2000, **algorithm},
            "policy": {"num_workers": 2, "learning_rate": 1e-4},
            "critic": {"init": "policy", "learning_rate": 1e-4},
            "reference": {},
            "reward": {"sources": [{"type": "function", "path": "rlhf_ray.chaos.toy:vowels"}]},
            "rollout": {
                "engine": lane,
                "engines": 2,
                "samples_per_prompt": 2,
                "max_new_tokens": 8,
                "kv_cache_gib": 0.25,
                "max_concurrent": 1 if lane == "vllm" else 16,
            },
            "train": {
                "num_steps": steps,
                "prompts_per_step": 4,
                "checkpoint_every": 2,
                "deadline_s": 300,
            },
        }
    )
