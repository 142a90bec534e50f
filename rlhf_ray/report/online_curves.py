"""The charts of an online run."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray import metrics as m
from rlhf_ray.report.curves import Chart, Panel, Plan, Record, Series, draw, in_words, series_of
from rlhf_ray.report.facts import number
from rlhf_ray.report.preference_curves import PREFERENCE_PLANS

_PLANS = (
    Plan(
        "kl",
        "Distance from the reference",
        "How far the policy has moved from where it started. The coefficient is what the controller charges for it.",
        (
            ("KL per token (k1, nats)", False, (("KL per token", m.KL_PER_TOKEN),)),
            ("KL coefficient", False, (("coefficient", m.KL_COEF),)),
        ),
    ),
    Plan(
        "length",
        "Answer length",
        "Rewards are often won by length alone; cut-off answers hit the token limit.",
        (
            ("tokens", False, (("mean length", m.LENGTH_MEAN),)),
            ("cut off", True, (("cut-off share", m.TRUNCATED),)),
        ),
    ),
    Plan(
        "critic",
        "Critic",
        "Explained variance near 1: the critic predicts the returns. At or below 0: it is no better than their mean.",
        (
            ("value loss", False, (("value loss", m.CRITIC_LOSS),)),
            ("explained variance", False, (("explained variance", m.CRITIC_EXPLAINED_VARIANCE),)),
        ),
    ),
    Plan(
        "update",
        "Size of the policy update",
        "Share of tokens whose ratio hit the clip range, and KL to the policy that sampled them.",
        (
            ("clipped tokens", True, (("clip fraction", m.POLICY_CLIP_FRACTION),)),
            ("KL to old (k3, nats)", False, (("KL to old", m.POLICY_KL_TO_OLD),)),
        ),
    ),
    Plan(
        "entropy",
        "Entropy of the policy",
        "A fast fall towards zero means that the policy has stopped exploring.",
        (("nats per token", False, (("entropy", m.ENTROPY),)),),
    ),
    Plan(
        "drift",
        "Agreement of sampler and learner",
        "Difference of the two engines' log-probabilities of the same tokens; a rise means stale or wrong weights.",
        (("nats", False, (("mean", m.DRIFT_MEAN), ("largest", m.DRIFT_MAX))),),
    ),
)


def build_charts(records: Sequence[Record], pairs: Sequence[tuple[float, float]]) -> list[Chart]:
    """All charts that have data: `records` of metrics.jsonl, and (before, after) rewards of held-out prompts."""
    charts = [_reward(records), *([_heldout(pairs)] if pairs else [])]
    charts += draw((*_PLANS, *PREFERENCE_PLANS), records)
    charts.append(_times(records))
    return [chart for chart in charts if chart.panels]


def _reward(records: Sequence[Record]) -> Chart:
    line = series_of(records, "mean reward", m.REWARD_MEAN)
    prefix = m.REWARD_SOURCE.format(source="")
    known = {m.REWARD_MEAN, m.REWARD_STD, m.QUARANTINED}
    sources = sorted({key for record in records for key in record if key.startswith(prefix)} - known)
    panels = []
    if line is not None:
        spread = [number(record, m.REWARD_STD) or 0.0 for record in records]
        lines = [Series(line.name, line.x, line.y, spread)]
        if len(sources) > 1:
            parts = [series_of(records, key.removeprefix(prefix), key) for key in sources]
            lines += [part for part in parts if part is not None]
        panels.append(Panel("reward", lines))
    note = "Of the training rollouts, before any KL term. The band is one standard deviation of the rollouts."
    return Chart("reward", "Reward while training", note, "step", panels, in_words(panels), wide=True)


def _times(records: Sequence[Record]) -> Chart:
    bars = [series_of(records, phase, m.TIME_PHASE.format(phase=phase)) for phase in m.PHASES]
    shown = [bar for bar in bars if bar is not None]
    panels = [Panel("seconds", shown, kind="bar")] if shown else []
    totals = [f"{bar.name} {sum(value or 0.0 for value in bar.y):.0f} s" for bar in shown]
    words = "Seconds over all steps: " + ", ".join(totals) + "."
    return Chart("time", "Time per step", "What each step waited for.", "step", panels, words, wide=True)


def _heldout(pairs: Sequence[tuple[float, float]]) -> Chart:
    x = [float(position) for position in range(1, len(pairs) + 1)]
    lines = [Series("before", x, [pair[0] for pair in pairs]), Series("after", x, [pair[1] for pair in pairs])]
    better = sum(after > before for before, after in pairs)
    words = f"{better} of {len(pairs)} held-out prompts got a higher reward after training."
    note = "One line a prompt, biggest gain on the left."
    panel = Panel("reward", lines, kind="pairs")
    return Chart("heldout", "Every held-out prompt", note, "prompt", [panel], words, wide=True)
