"""`rlhf-ray feedback`: what people said about a service's replies, as data to train on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from rlhf_ray.errors import UserError
from rlhf_ray.serving.place import DEFAULT_STORE, store_url

if TYPE_CHECKING:  # loads SQLAlchemy, which `--help` does not need
    from rlhf_ray.serving.store import FeedbackStore

feedback_app = typer.Typer(no_args_is_help=True, help="What people said about a service's replies.")


@feedback_app.command(epilog="Example: rlhf-ray feedback export --since 2026-11-01 feedback.jsonl")
def export(
    out: Annotated[Path, typer.Argument(help="A new .jsonl file.")],
    since: Annotated[str | None, typer.Option(help="Only what was said from this ISO date or time on (UTC).")] = None,
    store: Annotated[str, typer.Option(help="The service's store: a file or a database URL.")] = DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")] = False,
) -> None:
    """Write pairs, rankings, ratings and thumbs to OUT; `rlhf-ray data check` and the recipes read it as it is.

    Two replies that are both bad become two thumbs down, a flagged reply one; a tie stays a pair. Statements that
    nothing can be learned from, such as a choice between two equal texts, are left out and counted.
    """
    from rlhf_ray.serving.records import utc_seconds

    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the rows are written as JSON lines, so the name must end in .jsonl")
    if out.exists() and not force:
        raise UserError(f"{out} exists already and is not overwritten; give another name, or --force to replace it")
    try:
        moment = None if since is None else utc_seconds(since)
    except ValueError as error:
        raise UserError(f"--since: {error}") from None
    with _opened(store) as feedback, _replacing(out) as stream:
        exported = _write(stream, feedback.export_rows(moment))
        if not exported.rows:
            when = "" if since is None else f" since {since}"
            raise UserError(
                f"--store {_shown(store)} has no feedback to train on{when}{exported.losses()}; wait for some"
            )
    if json_:
        typer.echo(json.dumps({"path": str(out), "rows": exported.rows, "left_out": exported.left_out}))
        return
    kinds = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in sorted(exported.rows.items()))
    typer.echo(f"{out}: {kinds}{exported.losses()}")


@dataclass(slots=True)
class _Exported:
    """How many rows were written, by kind of evidence, and how many were not, by reason."""

    rows: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def losses(self) -> str:
        """The rows left out, in words."""
        reasons = "; ".join(f"{count}: {reason}" for reason, count in self.left_out.items())
        return f" (left out: {reasons})" if reasons else ""


def _write(stream: TextIO, rows: Iterable[dict[str, Any]]) -> _Exported:
    """Writes the rows that the readers of training data accept."""
    from rlhf_ray.data.feedback import FeedbackConfig
    from rlhf_ray.data.shapes import BadRow, parse

    config, exported = FeedbackConfig(path="feedback"), _Exported()
    for row in rows:
        try:
            (item,) = parse(row, str(row["feedback_id"]), config)
        except BadRow as error:
            exported.left_out[error.cause] += 1
            continue
        exported.rows[item.kind] += 1
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return exported


@contextmanager
def _opened(store: str) -> Iterator[FeedbackStore]:
    """The store; what goes wrong with it inside is a `UserError`. A file is never made."""
    from sqlalchemy.exc import SQLAlchemyError

    from rlhf_ray.serving.store import FeedbackStore

    file = Path(store.removeprefix("sqlite:///"))
    if ("://" not in store or store.startswith("sqlite:///")) and not file.is_file():
        raise UserError(f"--store {store}: there is no such file; give the store of the service (`rlhf-ray serve`)")
    try:
        yield FeedbackStore(store_url(store))
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise UserError(f"--store {_shown(store)} cannot be read: {reason}; is it the service's store?") from error


@contextmanager
def _replacing(out: Path) -> Iterator[TextIO]:
    """A stream whose text is `out` when all went well; before that, and if it did not, `out` is as it was."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; give a path in a folder that exists") from error
    finally:
        temporary.unlink(missing_ok=True)


def _shown(store: str) -> str:
    """The store without a password."""
    from sqlalchemy.engine import make_url

    return make_url(store).render_as_string() if "://" in store else store
