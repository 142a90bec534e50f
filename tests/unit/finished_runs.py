"""Run directories as finished runs leave them, with the figures that a test asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.rundir.journal import write_summary
from rlhf_ray.rundir.lines import append_line
from rlhf_ray.rundir.rollout_table import write_rollouts
from rlhf_ray.types import Message, Prompt, Rollout, Score
from tests.builders import run_config

HELDOUT = 4
STEPS: tuple[dict[str, float], ...] = (
    {"reward/mean": 0.2, "kl/k1_per_token": 0.0, "throughput/response_tokens": 30.0, "time/step": 10.0},
    {"reward/mean": 0.4, "kl/k1_per_token": 0.01, "throughput/response_tokens": 50.0, "time/step": 12.0,
     "time/commit": 3.0},
)  # fmt: skip


def answer(index: int, reward: float | None, text: str, question: str = "question") -> Rollout:
    """The answer to held-out prompt `index`; one without a reward could not be scored."""
    score = Score(0.0, {}, "no score") if reward is None else Score(reward, {"rm": reward})
    prompt = Prompt(f"p{index}", (Message("system", "be brief"), Message("user", f"{question} {index}")), (1,))
    return Rollout(prompt, 0, (1, 2), (-1.0, -1.0), text, "length" if index % 2 else "stop", 0, score)


def finished_run(folder: Path, **what: Any) -> Path:
    """A run of GRPO (or `algorithm`) in `folder`, which it returns: 2 steps of 4 prompts and 2 samples. `what` are
    sections of its config, and arguments of `fill`."""
    sections = {name: what.pop(name) for name in RunConfig.model_fields if name in what}
    sections["train"] = {"eval_prompts": HELDOUT, **sections.get("train", {})}
    return fill(
        folder, run_config(Path("tiny"), "prompts.jsonl", **{"algorithm": {"type": "grpo"}, **sections}), **what
    )


def fill(
    folder: Path,
    config: RunConfig,
    before: Sequence[float | None] = (0.0,) * HELDOUT,
    after: Sequence[float | None] = (2.0,) * HELDOUT,
    texts: Sequence[str] | None = None,
    question: str = "question",
    trained_on: str = "lesson",
    steps: Sequence[dict[str, float]] = STEPS,
    summary: dict[str, object] | None = None,
) -> Path:
    """What a run of `config` leaves in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    for number, step in enumerate(steps, start=1):
        append_line(folder / "metrics.jsonl", {"step": number, **step})
    texts = texts or [f"{config.algorithm.type} {config.seed}: {i}" for i in range(len(after))]
    old = [answer(i, reward, f"untrained {config.seed}: {i}", question) for i, reward in enumerate(before)]
    new = [answer(i, reward, text, question) for i, (reward, text) in enumerate(zip(after, texts, strict=True))]
    write_rollouts(folder / "eval" / "before.parquet", old)
    write_rollouts(folder / "eval" / "after.parquet", new)
    write_rollouts(folder / "rollouts" / "step-000001.parquet", [answer(9, 0.2, "x", trained_on)])
    rollouts = config.rollouts_per_step * config.train.num_steps
    figures: dict[str, object] = {"kl_to_reference_per_token": 0.25, "truncated_after": 0.5}
    write_summary(folder, {"finished": True, "rollouts": rollouts, **figures, **(summary or {})})
    return folder
