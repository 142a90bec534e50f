"""`rlhf-ray data`: look at feedback before training on it, clean it, or make some whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_ray.data.feedback import FeedbackConfig

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Check and clean preference data, or make some whose true quality is known.",
)
_EVERY = 20_000  # rows between two lines of progress where there is no terminal


@data_app.command(epilog="Example: rlhf-ray data check my.jsonl")
def check(
    file: Annotated[str, typer.Argument(help="A file, a folder, a hub id (owner/name), or `demo`.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer and chat template; `none` counts no tokens.")] = (
        "smollm2-135m"
    ),
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer rows, prompt and answer together, are counted.")] = 256,
    against: Annotated[str | None, typer.Option(help="Other data, in which no prompt of FILE may be.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a clean copy here (a new .jsonl file).")] = None,
    split: Annotated[str, typer.Option(help="The split of a folder or of a hub data set.")] = "train",
    rating_scale: Annotated[tuple[float, float], typer.Option(help="Lowest and highest rating.")] = (1.0, 5.0),
    rating_step: Annotated[float, typer.Option(help="Ratings lie this far apart.")] = 1.0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")] = False,
) -> None:
    """Say what FILE holds, how the model will see it, and what is wrong with it.

    The exit code is 1 if there are rows that cannot be used, unless --fix has left them out of a clean copy.
    """
    from rlhf_ray.cli.data_report import print_cleaned, print_report
    from rlhf_ray.data.check import check as check_rows
    from rlhf_ray.data.clean import fix as write_clean

    config = _config(file, split, max_tokens, rating_scale, rating_step)
    other = None if against is None else _config(against, split, max_tokens, rating_scale, rating_step)
    tokenizer = _tokenizer(model)
    with _progress("checking", config) as on_rows:
        report = check_rows(config, tokenizer, other, on_rows)
    cleaned = None
    if not json_:
        print_report(report)
    if fix is not None:
        with _progress("writing", config) as on_rows:
            cleaned = write_clean(config, fix, other, on_rows)
        if not json_:
            print_cleaned(cleaned)
    if json_:
        print(json.dumps({**report.as_json(), "cleaned": None if cleaned is None else cleaned.as_json()}))
    if report.bad.total and cleaned is None:
        raise typer.Exit(1)


@data_app.command(epilog="Example: rlhf-ray data make pairs.jsonl --samples 1000 --noise 0.1")
def make(
    out: Annotated[Path, typer.Argument(help="A new .jsonl file.")],
    kind: Annotated[str, typer.Option(help="pairs, rankings, ratings, thumbs, or mixed (the first three).")] = "pairs",
    samples: Annotated[int, typer.Option(min=1, help="How many are judged.")] = 1000,
    noise: Annotated[float, typer.Option(help="How often a typical judgement is wrong: 0 up to below 0.5.")] = 0.0,
    annotators: Annotated[int, typer.Option(min=1, help="How many judge each; every judgement is a row.")] = 1,
    objectives: Annotated[str, typer.Option(help="overall, or helpfulness,honesty,courtesy.")] = "overall",
    seed: Annotated[int, typer.Option(help="Another seed, other data.")] = 0,
) -> None:
    """Write synthetic feedback about household questions; `quality` in each row is the truth about its answers."""
    from rlhf_ray.data.synthetic import create_preference_data, known_kind

    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the rows are written as JSON lines, so the name must end in .jsonl")
    rows = create_preference_data(
        samples,
        kind=known_kind(kind),
        label_noise=noise,
        annotators=annotators,
        objectives=objectives.split(","),
        seed=seed,
    )
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    except FileExistsError:
        raise UserError(f"{out} exists already and is not overwritten; give another name or remove it") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; give a path in a folder that exists") from error
    typer.echo(f"{out}: {len(rows)} rows")


def _config(
    path: str, split: str, max_tokens: int, rating_scale: tuple[float, float], rating_step: float
) -> FeedbackConfig:
    from pydantic import ValidationError

    from rlhf_ray.data.feedback import FeedbackConfig
    from rlhf_ray.data.files import data_files

    try:
        config = FeedbackConfig(
            path=path, split=split, max_tokens=max_tokens, rating_scale=rating_scale, rating_step=rating_step
        )
    except ValidationError as error:
        raise UserError("; ".join(str(problem["msg"]) for problem in error.errors())) from None
    data_files(path, split, key="FILE")  # a wrong path is said at once, before a tokenizer is loaded
    return config


def _tokenizer(model: str) -> PreTrainedTokenizerBase | None:
    if model == "none":
        return None
    from rlhf_ray.models.folder import resolve_model

    folder = resolve_model(model)
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {model}: has no tokenizer that can be loaded ({reason}); give another") from error
    return tokenizer


@contextmanager
def _progress(what: str, config: FeedbackConfig) -> Iterator[Callable[[int], None]]:
    """A function to be called with the number of rows read: a bar in a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=_expected_rows(config))
            yield lambda rows: bar.update(task, completed=rows)
        return
    told = 0

    def tell(rows: int) -> None:
        nonlocal told
        if rows - told >= _EVERY:
            told = rows
            console.print(f"{what}: {rows:,} rows", highlight=False)

    yield tell


def _expected_rows(config: FeedbackConfig) -> int | None:
    """The rows of JSONL and Parquet files, which can be counted quickly; None for others."""
    from rlhf_ray.data.files import data_files

    total = 0
    for file in data_files(config.path, config.split):
        if file.suffix == ".jsonl":
            with file.open("rb") as stream:
                total += sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))
        elif file.suffix == ".parquet":
            from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]  # pyarrow ships no types

            total += read_metadata(file).num_rows
        else:
            return None
    return total or None
