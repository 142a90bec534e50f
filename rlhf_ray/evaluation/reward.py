"""The evaluation of a reward model on scored, held-out evidence; `evaluation.json` in the run directory."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.calibration import Calibration, calibrate_pairs, calibrate_thumbs
from rlhf_ray.evaluation.kendall import KendallTau, kendall
from rlhf_ray.evaluation.reward_accuracy import (
    Accuracy,
    CategoryTable,
    Certainty,
    accuracy_of,
    by,
    by_category,
    by_certainty,
    by_kind,
    by_length,
)
from rlhf_ray.evaluation.reward_agreement import Alpha, alphas
from rlhf_ray.evaluation.reward_items import ScoredItem, decisions
from rlhf_ray.evaluation.reward_length import LengthBias, length_bias
from rlhf_ray.strict import Strict

EVALUATION_FILE = "evaluation.json"


class RewardEvaluation(Strict):
    """What a reward model is worth on data that it was not trained on.

    `overall` is over comparisons: pairs, and those that rankings and ratings contain. Thumbs ask something else
    (whether the score is above zero), so they are in `by_kind` alone, beside `thumbs_majority`: the share that always
    giving the commoner thumb would get right. Parts for which there is no evidence are None or empty.
    """

    items: int
    overall: Accuracy
    by_kind: tuple[Accuracy, ...]
    by_objective: tuple[Accuracy, ...]
    by_length: tuple[Accuracy, ...]
    by_annotator: tuple[Accuracy, ...]
    thumbs_majority: float | None
    agreement: tuple[Alpha, ...]
    kendall: tuple[KendallTau, ...]
    pair_calibration: Calibration | None
    thumb_calibration: Calibration | None
    length: LengthBias | None
    categories: CategoryTable | None
    certainty: Certainty | None


def evaluate_reward_model(items: Sequence[ScoredItem], seed: int) -> RewardEvaluation:
    """All figures over `items`; `seed` is that of bootstrap and simulation. Raises `UserError` if there are none."""
    if not items:
        raise UserError("no held-out evidence to judge the reward model by; raise data.heldout_fraction")
    group = decisions(items)
    comparisons = [decision for decision in group if decision.kind != "thumb"]
    good = [decision.good for decision in group if decision.kind == "thumb"]
    share = sum(good) / len(good) if good else None
    return RewardEvaluation(
        items=len(items),
        overall=accuracy_of("all comparisons", comparisons),
        by_kind=tuple(by_kind(group)),
        by_objective=tuple(by(group, lambda decision: decision.objective)),
        by_length=tuple(by_length(comparisons)) if comparisons else (),
        by_annotator=tuple(by(group, lambda decision: decision.annotator)),
        thumbs_majority=None if share is None else max(share, 1 - share),
        agreement=tuple(alphas(group)),
        kendall=tuple(kendall(items, seed)),
        pair_calibration=calibrate_pairs(group, seed),
        thumb_calibration=calibrate_thumbs(group, seed),
        length=length_bias(comparisons, seed),
        categories=by_category(group),
        certainty=by_certainty(group),
    )
