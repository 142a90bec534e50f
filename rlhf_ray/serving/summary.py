"""The figures of what people said: counts, agreement, and how a canary fares against the stable policy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Float, case, cast, distinct, func, select

from rlhf_ray.data.agreement import Level, krippendorff_alpha
from rlhf_ray.evaluation.intervals import wilson_interval
from rlhf_ray.serving.records import CHOICES, RATINGS, THUMBS
from rlhf_ray.serving.store import ABOUT, REPLIES, STATEMENTS

_KINDS = ("thumb", "rating", "correction", "flag", "preference", "ranking")
_COMPARISONS = ("preference", "ranking")
_RANKS = {"a": (1, 2), "b": (2, 1), "tie": (1, 1), "both_bad": (1, 1)}
_LEVELS: Mapping[str, Level] = {"thumb": "nominal", "rating": "ordinal", "preference": "nominal", "ranking": "ordinal"}


def summarise(connection: Connection, since: float | None) -> dict[str, Any]:
    """The body of `GET /v1/feedback/summary`, of statements given from `since` (UTC seconds) on.

    Every statement counts, also an annotator's second one about the same reply. `canary_vs_stable` is about the canary
    that was compared last; a ranking is one comparison, and neither or both being good is a tie.
    """
    given = STATEMENTS.c.given_at >= (since or 0.0)
    named = select(func.count(distinct(STATEMENTS.c.annotator))).where(given, STATEMENTS.c.annotator != "")
    return {
        **_counts(connection, given),
        "annotators": connection.execute(named).scalar_one(),
        "agreement": _agreement(_judged_by_several(connection, given)),
        "canary_vs_stable": _canary_vs_stable(_statements(connection, given, STATEMENTS.c.kind.in_(_COMPARISONS))),
        "policies": _policies(connection, given),
    }


def _counts(connection: Connection, given: ColumnElement[bool]) -> dict[str, Any]:
    """`counts` and `by_day`."""
    key = (STATEMENTS.c.kind, STATEMENTS.c.value, STATEMENTS.c.day)
    by_kind: dict[str, Counter[str]] = {}
    days: dict[str, Counter[str]] = {}
    for kind, value, day, count in connection.execute(select(*key, func.count()).where(given).group_by(*key)):
        by_kind.setdefault(kind, Counter())[value] += count
        shown = value if kind == "thumb" else "preferences" if kind in _COMPARISONS else None
        if shown is not None:
            days.setdefault(day, Counter())[shown] += count
    found: dict[str, Counter[str]] = {kind: by_kind.get(kind, Counter()) for kind in _KINDS}
    return {
        "counts": {
            "thumb": {word: found["thumb"][word] for word in THUMBS},
            "rating": {str(rating): found["rating"][str(rating)] for rating in RATINGS},
            "correction": found["correction"].total(),
            "flag": dict(sorted(found["flag"].items())),
            "preference": {word: found["preference"][word] for word in CHOICES},
            "ranking": found["ranking"].total(),
        },
        "by_day": [
            {"day": day, **{name: days[day][name] for name in ("up", "down", "preferences")}} for day in sorted(days)
        ],
    }


@dataclass(frozen=True, slots=True)
class _Statement:
    """One statement with the replies that it is about, in the order in which it names them."""

    kind: str
    value: str
    annotator: str
    replies: Sequence[Any]
    """`id`, `role`, `version`."""

    @property
    def ranks(self) -> Sequence[int]:
        """Of the replies, 1 being best."""
        return _RANKS[self.value] if self.kind == "preference" else json.loads(self.value)


def _statements(connection: Connection, *where: ColumnElement[bool]) -> Iterator[_Statement]:
    """In the order in which they were given."""
    columns = (STATEMENTS.c.id, STATEMENTS.c.kind, STATEMENTS.c.value, STATEMENTS.c.annotator)
    query = (
        select(*columns, REPLIES.c.id.label("reply_id"), REPLIES.c.role, REPLIES.c.policy_version.label("version"))
        .join(ABOUT, ABOUT.c.statement_id == STATEMENTS.c.id)
        .join(REPLIES, REPLIES.c.id == ABOUT.c.reply_id)
        .where(*where)
        .order_by(STATEMENTS.c.given_at, STATEMENTS.c.id, ABOUT.c.position)
    )
    for _, group in groupby(connection.execute(query), key=lambda row: row.id):
        rows = list(group)
        yield _Statement(rows[0].kind, rows[0].value, rows[0].annotator, rows)


def _judged_by_several(connection: Connection, given: ColumnElement[bool]) -> Iterator[_Statement]:
    """Statements by named annotators that touch a reply of which more than one of them said something."""
    judging = (given, STATEMENTS.c.annotator != "", STATEMENTS.c.kind.in_(_LEVELS))
    several = (
        select(ABOUT.c.reply_id)
        .join(STATEMENTS, ABOUT.c.statement_id == STATEMENTS.c.id)
        .where(*judging)
        .group_by(ABOUT.c.reply_id)
        .having(func.count(distinct(STATEMENTS.c.annotator)) > 1)
    )
    about = select(ABOUT.c.statement_id).where(ABOUT.c.reply_id.in_(several))
    return _statements(connection, *judging, STATEMENTS.c.id.in_(about))


def _agreement(statements: Iterable[_Statement]) -> dict[str, Any]:
    """Krippendorff's alpha for each kind of statement by itself, and their mean weighted by judgements.

    One alpha over all kinds would count it as agreement that a thumb is never a rating. Of an annotator's statements
    about the same thing the last one counts.
    """
    verdicts: dict[str, dict[tuple[str, ...], dict[str, float]]] = {kind: {} for kind in _LEVELS}
    for statement in statements:
        for unit, value in _judgements(statement):
            verdicts[statement.kind].setdefault(unit, {})[statement.annotator] = value
    items, weighted, judgements = 0, 0.0, 0
    for kind, units in verdicts.items():
        shared = [list(values.values()) for values in units.values() if len(values) > 1]
        items += len(shared)
        index = np.repeat(np.arange(len(shared)), [len(values) for values in shared])
        flat = np.array([value for values in shared for value in values])
        alpha = krippendorff_alpha(index, flat, _LEVELS[kind]) if shared else None
        if alpha is not None:
            weighted, judgements = weighted + alpha * len(flat), judgements + len(flat)
    return {"alpha": weighted / judgements if judgements else None, "items": items}


def _judgements(statement: _Statement) -> Iterator[tuple[tuple[str, ...], float]]:
    """What is judged, and the verdict, which is the same in whatever order the replies were shown."""
    ids = [reply.reply_id for reply in statement.replies]
    if statement.kind == "thumb":
        yield (ids[0],), float(THUMBS.index(statement.value))
    elif statement.kind == "rating":
        yield (ids[0],), float(statement.value)
    elif statement.kind == "preference":
        swapped = ids != sorted(ids)
        value = {"a": "b", "b": "a"}.get(statement.value, statement.value) if swapped else statement.value
        yield tuple(sorted(ids)), float(CHOICES.index(value))
    else:
        for reply_id, rank in zip(ids, statement.ranks, strict=True):
            yield (*sorted(ids), reply_id), float(rank)


def _canary_vs_stable(comparisons: Iterable[_Statement]) -> dict[str, Any] | None:
    """How often the canary was preferred: a tie is half a win. Earlier canaries are another matter and left out."""
    shares: dict[str, list[float]] = {}
    newest = None
    for comparison in comparisons:
        ranked = list(zip(comparison.replies, comparison.ranks, strict=True))
        canaries = [(reply.version, rank) for reply, rank in ranked if reply.role == "canary"]
        against = [rank for reply, rank in ranked if reply.role == "stable"]
        for version in sorted({version for version, _ in canaries}) if against else ():
            ranks = [rank for other, rank in canaries if other == version]
            wins = [(mine < theirs) + (mine == theirs) / 2 for mine, theirs in product(ranks, against)]
            shares.setdefault(version, []).append(sum(wins) / len(wins))
            newest = version
    if newest is None:
        return None
    wins_, count = sum(shares[newest]), len(shares[newest])
    return {"wins": wins_, "comparisons": count, "rate": wins_ / count, "ci95": list(wilson_interval(wins_, count))}


def _policies(connection: Connection, given: ColumnElement[bool]) -> list[dict[str, Any]]:
    """By version. `replies_rated` are those about which anything was said, comparisons included."""
    thumb, rating = STATEMENTS.c.kind == "thumb", STATEMENTS.c.kind == "rating"
    ups, downs = (
        func.coalesce(func.sum(case((thumb & (STATEMENTS.c.value == word), 1), else_=0)), 0) for word in THUMBS
    )
    query = (
        select(
            REPLIES.c.policy_version.label("version"),
            ups.label("ups"),
            downs.label("downs"),
            func.avg(case((rating, cast(STATEMENTS.c.value, Float)))).label("mean"),
            func.count(distinct(REPLIES.c.id)).label("replies"),
        )
        .join(ABOUT, ABOUT.c.reply_id == REPLIES.c.id)
        .join(STATEMENTS, STATEMENTS.c.id == ABOUT.c.statement_id)
        .where(given)
        .group_by(REPLIES.c.policy_version)
        .order_by(REPLIES.c.policy_version)
    )
    return [
        {
            "version": row.version,
            "thumbs_up": row.ups,
            "thumbs_down": row.downs,
            "mean_rating": row.mean,
            "replies_rated": row.replies,
        }
        for row in connection.execute(query)
    ]
