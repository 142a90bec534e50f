"""Agreement of people with each other and with the model: Krippendorff's alpha."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlhf_ray.evaluation.reward_items import Decision
from rlhf_ray.strict import Strict


class Alpha(Strict):
    """Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability"): 1 is full agreement, 0 is chance.

    Over the `units` (two answers, or one answer with thumbs) that several people judged, if there are any: among
    `people`, and `with_model` as one more annotator of the same units. Where nobody judged the same unit twice, over
    all units, and `people` is None. None also where all judgements are the same.
    """

    of: Literal["comparisons", "thumbs"]
    units: int
    judgements: int
    people: float | None
    with_model: float | None


def alphas(group: Sequence[Decision]) -> list[Alpha]:
    """Nominal alpha of comparisons (this answer, that one, a tie) and of thumbs; those that are there.

    Decisions without an annotator are left out: two of them may be one person's, or copies of one row. Only the first
    judgement of a unit by one annotator counts.
    """
    named = [decision for decision in group if decision.annotator is not None]
    comparisons = [decision for decision in named if decision.kind != "thumb"]
    thumbs = [decision for decision in named if decision.kind == "thumb"]
    found = []
    if comparisons:
        found.append(_alpha("comparisons", comparisons))
    if thumbs:
        found.append(_alpha("thumbs", thumbs))
    return found


def krippendorff_alpha(counts: np.ndarray) -> float | None:
    """Nominal alpha from `counts[unit, value]`: how many said that the unit has the value. None if only one value
    occurs, where chance agreement is certain."""
    import krippendorff

    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def _alpha(of: Literal["comparisons", "thumbs"], group: Sequence[Decision]) -> Alpha:
    people: defaultdict[tuple[object, ...], dict[str | None, int]] = defaultdict(dict)
    model: dict[tuple[object, ...], int] = {}
    for decision in group:
        # In the order of their text: which answer comes first must not depend on the judgement.
        unit = (decision.prompt, decision.objective, min(decision.answers), max(decision.answers))
        human, score = (_thumb if of == "thumbs" else _comparison)(decision)
        people[unit].setdefault(decision.annotator, human)
        model[unit] = score
    several = [unit for unit, said in people.items() if len(said) > 1]
    units = several or list(people)
    one_hot = np.eye(3, dtype=np.int64)
    counts = np.array([one_hot[list(people[unit].values())].sum(axis=0) for unit in units])
    return Alpha(
        of=of,
        units=len(units),
        judgements=int(counts.sum()),
        people=krippendorff_alpha(counts) if several else None,
        with_model=krippendorff_alpha(counts + one_hot[[model[unit] for unit in units]]),
    )


def _comparison(decision: Decision) -> tuple[int, int]:
    """(human, model): 0 the second answer is better, 1 neither, 2 the first one."""
    better_is_first = decision.answers[0] == min(decision.answers)
    human = 1 if decision.tie else 2 if better_is_first else 0
    score = 1 if decision.margin == 0 else 2 if (decision.margin > 0) == better_is_first else 0
    return human, score


def _thumb(decision: Decision) -> tuple[int, int]:
    """(human, model): 0 bad, 1 cannot tell, 2 good."""
    human = 2 if decision.good else 0
    return human, 1 if decision.margin == 0 else human if decision.margin > 0 else 2 - human
