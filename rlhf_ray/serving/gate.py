"""Whether a run is good enough to be served, by its own held-out figures and the bounds in its config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from rlhf_ray.config.common import ServingGateConfig
from rlhf_ray.errors import UserError
from rlhf_ray.report.facts import interval, number
from rlhf_ray.report.files import RunFiles


@dataclass(frozen=True, slots=True)
class Verdict:
    """`words` are the figures that decided."""

    passed: bool
    words: str


def judge(run: RunFiles) -> Verdict:
    """The verdict on a run: it must be finished, have held-out figures, and each of them must be within bounds."""
    try:
        gate = ServingGateConfig.model_validate(run.config.get("gate", {}))
    except ValidationError as error:
        raise UserError(f"{run.path}/config.yaml: gate: {error.errors()[0]['msg']}") from None
    if not run.summary.get("finished"):
        return Verdict(False, "the run is not finished")
    figures = list(_figures(run, gate))
    if not figures and gate.needs_evaluation and run.kind != "sft":
        what = "train.eval_prompts above 0" if run.kind == "online" else "some held-out pairs"
        return Verdict(False, f"it has no held-out figures (train with {what}, or set gate.needs_evaluation=false)")
    bad = [words for good, words in figures if not good]
    return Verdict(not bad, "; ".join(bad or [words for _, words in figures] or ["nothing was measured"]))


def _figures(run: RunFiles, gate: ServingGateConfig) -> Iterator[tuple[bool, str]]:
    gain, ends = number(run.summary, "reward_gain"), interval(run.summary, "reward_gain_ci95")
    if gain is not None and ends is not None:
        low, high = ends
        words = (
            f"held-out reward gain {gain:.3g} (95% interval {low:.3g} to {high:.3g}; must be above {gate.min_gain:g})"
        )
        yield low > gate.min_gain, words
    if (kl := number(run.summary, "kl_to_reference_per_token")) is not None:
        yield kl <= gate.max_kl_per_token, f"KL to the reference {kl:.3g} a token (at most {gate.max_kl_per_token:g})"
    before, after = number(run.summary, "perplexity_before"), number(run.summary, "perplexity_after")
    if before and after:
        ratio = after / before
        yield (
            ratio <= gate.max_perplexity_ratio,
            f"perplexity of its answers {ratio:.3g} times that before (at most {gate.max_perplexity_ratio:g})",
        )
    accuracy, ends = number(run.summary, "heldout_accuracy"), interval(run.summary, "heldout_accuracy_ci95")
    if accuracy is not None and ends is not None:
        low = ends[0]
        words = f"held-out accuracy {accuracy:.0%} (95% interval from {low:.0%}; must be above {gate.min_accuracy:.0%})"
        yield low > gate.min_accuracy, words
