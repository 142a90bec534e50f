"""What people said about replies as rows to train on, of the shapes that `data/shapes.py` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, select

from rlhf_ray.serving.store import ABOUT, REPLIES, STATEMENTS

_AT_ONCE = 500  # rows of the database in memory


def rows(connection: Connection, since: float | None) -> Iterator[dict[str, Any]]:
    """The rows of what was said from `since` (UTC seconds) on, in that order.

    A choice between two replies becomes a pair, or two answers and a tie; a ranking, a rating and a thumb stay what
    they are; a correction becomes a pair in which it is better than the reply. Two replies that are both bad, and a
    reply that is flagged, say nothing of which answer is better, so they become thumbs down: one for each reply.
    Comments are not exported.

    Every row has its lineage: `reply_ids` and `policy_versions` of the replies in it (for a pair, better one first; a
    correction has none), `annotator` (a hash; missing if nobody was named), `feedback_id`, `given_at` (UTC seconds).
    Rows may say what cannot be trained on, such as that one of two equal texts is better: `data/shapes.py` refuses it.
    """
    statement = (
        select(
            *(STATEMENTS.c[name] for name in ("id", "kind", "value", "correction", "annotator", "given_at")),
            *(REPLIES.c[name] for name in ("policy_version", "messages", "text")),
            REPLIES.c.id.label("reply_id"),
        )
        .join(ABOUT, ABOUT.c.statement_id == STATEMENTS.c.id)
        .join(REPLIES, REPLIES.c.id == ABOUT.c.reply_id)
        .where(STATEMENTS.c.given_at >= (since or 0.0))
        .order_by(STATEMENTS.c.given_at, STATEMENTS.c.id, ABOUT.c.position)
    )
    found = connection.execution_options(yield_per=_AT_ONCE).execute(statement)
    for _, group in groupby(found, key=lambda row: row.id):
        yield from _rows_of(list(group))


def _rows_of(replies: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The rows of one statement; `replies` are those it is about, each with the columns of the statement."""
    said, texts = replies[0], [reply.text for reply in replies]
    if said.kind == "preference":
        yield from _choice(replies)
    elif said.kind == "ranking":
        yield _row(replies, replies, responses=texts, ranks=json.loads(said.value))
    elif said.kind == "rating":
        yield _row(replies, replies, completion=texts[0], rating=int(said.value))
    elif said.kind == "correction":
        yield _row(replies, replies, chosen=said.correction, rejected=texts[0])
    else:
        yield _row(replies, replies, completion=texts[0], label=said.value == "up")  # no flag is called so


def _choice(replies: Sequence[Any]) -> Iterator[dict[str, Any]]:
    choice = replies[0].value
    if choice == "both_bad":
        for reply in replies:
            yield _row(replies, [reply], completion=reply.text, label=False)
    elif choice == "tie":
        yield _row(replies, replies, response_a=replies[0].text, response_b=replies[1].text, preference="tie")
    else:
        better, worse = replies if choice == "a" else reversed(replies)
        yield _row(replies, [better, worse], chosen=better.text, rejected=worse.text)


def _row(said: Sequence[Any], shown: Sequence[Any], **judged: Any) -> dict[str, Any]:
    """One row: the messages, what is judged, and the lineage of the replies `shown` in it."""
    named = {"annotator": said[0].annotator} if said[0].annotator else {}
    return {
        "prompt": json.loads(said[0].messages),
        **judged,
        "reply_ids": [reply.reply_id for reply in shown],
        "policy_versions": [reply.policy_version for reply in shown],
        **named,
        "feedback_id": said[0].id,
        "given_at": said[0].given_at,
    }
