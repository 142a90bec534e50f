"""The page of an online run: PPO and its relatives, and preference learning on the policy's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlhf_ray import metrics as m
from rlhf_ray.report.answers import choose, rewards_by_prompt
from rlhf_ray.report.content import Column, Content, Verdict
from rlhf_ray.report.facts import (
    Tile,
    change,
    costs,
    figure,
    interval,
    number,
    plural,
    show,
    span,
    split,
    time_shares,
)
from rlhf_ray.report.files import RunFiles
from rlhf_ray.report.online_curves import build_charts
from rlhf_ray.report.timeline import timeline, write_trace
from rlhf_ray.rundir.rollout_table import read_rollouts

Values = Mapping[str, object]
_GAIN_CI = "reward_gain_ci95"
_COLUMNS = (
    Column("Reward", m.REWARD_MEAN, 3),
    Column("KL per token", m.KL_PER_TOKEN, 4),
    Column("KL coefficient", m.KL_COEF, 4),
    Column("Length", m.LENGTH_MEAN, 1),
    Column("Cut-off share", m.TRUNCATED, 2),
    Column("Entropy", m.ENTROPY, 3),
    Column("Value loss", m.CRITIC_LOSS, 4),
    Column("Explained variance", m.CRITIC_EXPLAINED_VARIANCE, 3),
    Column("Loss", m.TRAIN_LOSS, 4),
    Column("Pair accuracy", m.TRAIN_ACCURACY, 3),
    Column("Margin", m.TRAIN_MARGIN, 3),
    Column("Beta", m.BETA, 4),
    Column("Seconds", m.TIME_STEP, 1),
)


def online_content(files: RunFiles) -> Content:
    """The page's own part. Raises `ValueError` if a table of answers is broken."""
    before, after = _answers(files.path / "eval" / "before.parquet"), _answers(files.path / "eval" / "after.parquet")
    found, missing = tiles(files.summary, len(files.records))
    policy = files.summary.get("policy_dir")
    write_trace(files.path)
    answers = ("eval/before.parquet", "eval/after.parquet") if _measured(files) else ()
    return Content(
        headline=headline(files.summary, len(files.records)),
        verdict=_verdict(files.summary, len({row["prompt_id"] for row in after}), _measured(files)),
        tiles=found,
        missing=missing,
        absent_files=files.absent(*answers),
        charts=[*build_charts(files.records, rewards_by_prompt(before, after)), *timeline(files.path)],
        columns=_COLUMNS,
        shares=time_shares(files.summary),
        model_dir=None if policy is None else str(policy),
        template="answers.html.j2",
        details=choose(before, after),
    )


def headline(summary: Values, steps_recorded: int) -> str:
    """The result in one sentence; it claims a change only if the interval excludes zero."""
    before, after = number(summary, "reward_before"), number(summary, "reward_after")
    if before is None or after is None:
        steps = plural(steps_recorded, "training step")
        if summary.get("finished") and before is None and after is None:
            return f"{steps} done; no held-out prompts were asked for (train.eval_prompts = 0)"
        return f"No held-out result yet: {steps} recorded"
    gain = number(summary, "reward_gain")
    gain = after - before if gain is None else gain
    ends = interval(summary, _GAIN_CI)
    went = f"from {show(before)} to {show(after)}"
    if ends is None:
        return f"Held-out reward went {went} ({show(gain, sign=True)}; the interval is not known)"
    within = span(ends, show)
    if ends[0] > 0:
        return f"Held-out reward rose {went} ({show(gain, sign=True)}, {within})"
    if ends[1] < 0:
        return f"Held-out reward fell {went} ({show(gain, sign=True)}, {within})"
    return f"No clear change in held-out reward: {went} ({show(gain, sign=True)}, {within}, which includes zero)"


def tiles(summary: Values, steps_recorded: int) -> tuple[list[Tile], list[str]]:
    """The key figures, and the names of those that the run has not recorded."""
    steps = number(summary, "steps")
    sampled = f"sampled in {int(steps) if steps is not None else steps_recorded:,} training steps"
    within = span(interval(summary, _GAIN_CI), show)
    return split(
        [
            figure(summary, "Held-out gain", "reward_gain", lambda x: show(x, sign=True), within),
            figure(
                summary, "KL to reference", "kl_to_reference_per_token", lambda x: show(x, 3), "nats per token (k1)"
            ),
            figure(summary, "Reward model", "rm_heldout_accuracy", "{:.0%}".format, "accuracy on held-out pairs"),
            figure(summary, "Rollouts", "rollouts", "{:,.0f}".format, sampled),
            *costs(summary),
            change(summary, "Cut-off answers", "truncated", "{:.0%}".format, "held-out answers at the length limit"),
            change(summary, "Answer length", "length", "{:.0f}".format, "tokens, mean of held-out answers"),
            change(
                summary, "Perplexity", "perplexity", "{:.1f}".format, "under the reference; a jump means broken text"
            ),
            change(summary, "Distinct-2", "distinct2", "{:.2f}".format, "unique token pairs; low means repetition"),
        ]
    )


def _measured(files: RunFiles) -> bool:
    """Whether there are answers to held-out prompts, or will be."""
    train = files.config.get("train")
    return not (isinstance(train, Mapping) and train.get("eval_prompts") == 0)


def _verdict(summary: Values, heldout: int, measured: bool) -> Verdict:
    ends = interval(summary, _GAIN_CI)
    if ends is None:
        finished = summary.get("finished") and not measured
        return Verdict("unknown", "Not measured on held-out prompts" if finished else "Not a finished result")
    note = (
        f"Paired bootstrap over {heldout} held-out prompts, answered with the same seeds before and after."
        if heldout
        else ""
    )
    if ends[0] > 0:
        return Verdict("up", "The 95% interval of the gain lies above zero", note)
    if ends[1] < 0:
        return Verdict("down", "The 95% interval of the gain lies below zero", note)
    return Verdict("same", "The 95% interval of the gain includes zero", note)


def _answers(path: Path) -> list[dict[str, object]]:
    return read_rollouts(path) if path.is_file() else []
