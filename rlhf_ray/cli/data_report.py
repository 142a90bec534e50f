"""How a check of feedback data is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from rlhf_ray.data.check_report import ExampleRow, Report
from rlhf_ray.data.clean import Cleaned

_BIASED = 0.6
"""A share of comparisons that the longer answer wins, from which on it is worth a warning."""
_SHOWN_CHARACTERS = 1200
_Line = tuple[str, str, bool]  # what, found, whether it is a warning


def print_report(report: Report) -> None:
    """Prints it to stdout: the examples, then a line for each thing looked at; warnings begin with `!`."""
    console = Console(highlight=False, markup=False)
    for example in report.examples:
        title = Text(_printable(f"{example.where}: {example.shape}"))
        console.print(Panel(_shown(example), title=title, title_align="left"))
    for what, found, warning in _lines(report):
        line = Text(_printable(f"{'!' if warning else ' '} {what:<14} {found}"), style="yellow" if warning else "")
        console.print(line, soft_wrap=True)


def print_cleaned(cleaned: Cleaned) -> None:
    """Prints how many rows were written, and how many were left out for what reason."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{cleaned.path}: {cleaned.written:,} rows written")
    for reason, count in cleaned.dropped.items():
        console.print(f"    {count:,} left out: {reason}")


def _lines(report: Report) -> Iterator[_Line]:
    yield "rows", f"{report.rows:,} in {report.path}, {report.prompts:,} different prompts", False
    yield "shapes", _counts(report.shapes), False
    yield "holds", _counts(report.kinds), False
    if report.objectives:
        yield "about", _counts(report.objectives), False
    yield from _bad(report)
    yield from _repeats(report)
    yield from _token_lines(report)
    yield from _judgements(report)


def _bad(report: Report) -> Iterator[_Line]:
    bad = report.bad
    counts = f" ({bad.empty_answers:,} with an empty answer, {bad.identical_answers:,} with equal answers)"
    yield "cannot be used", f"{bad.total:,}{counts if bad.total else ''}", bad.total > 0
    for row in bad.first:
        yield "", f"  {row.where}: {row.cause}; {row.fix}", False
    if bad.total > len(bad.first):
        yield "", f"  and {bad.total - len(bad.first):,} more", False


def _repeats(report: Report) -> Iterator[_Line]:
    found = report.duplicates
    example = f" (first: {found.first_exact[0]})" if found.first_exact else ""
    yield "duplicates", f"{found.exact:,} rows say the same as an earlier one{example}", found.exact > 0
    example = ""
    if found.first_near:
        pair = found.first_near[0]
        example = f" (first: {pair.where} and {pair.earlier}, {pair.similarity:.0%} alike)"
    yield "", f"{found.near:,} rows say nearly the same as an earlier one{example}", False
    for leak in report.leaks:
        example = f" (first: {leak.first[0]})" if leak.first else ""
        yield "leaks", f"{leak.rows:,} rows have a prompt that is also in {leak.other}{example}", leak.rows > 0


def _token_lines(report: Report) -> Iterator[_Line]:
    tokens = report.tokens
    if tokens is None:
        return
    for name, lengths in (("prompt tokens", tokens.prompts), ("answer tokens", tokens.answers)):
        if lengths:
            yield name, f"half up to {lengths.p50}, 95 % up to {lengths.p95}, all up to {lengths.max}", False
    found = f"{tokens.overlong:,} rows over {tokens.max_tokens} tokens"
    yield "over-long", f"{found} (longest: {tokens.longest}, {tokens.longest_where})", tokens.overlong > 0


def _judgements(report: Report) -> Iterator[_Line]:
    if report.ties:
        yield "ties", f"{report.ties:,}", False
    if report.annotators:
        yield "annotators", f"{report.annotators:,}", False
    for each in report.agreement:
        alpha = "undefined, as all judgements are equal" if each.alpha is None else f"{each.alpha:.2f}"
        about = f"{each.kind}, {each.objective}; {each.units:,} judged by two or more"
        yield "agreement", f"Krippendorff's alpha {alpha} ({about})", False
    bias = report.length_bias
    if bias:
        share = f"the longer answer wins {bias.longer_wins:.1%} of {bias.comparisons:,} comparisons (in {bias.unit})"
        yield "length bias", share, bias.longer_wins >= _BIASED


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "nothing usable"


def _shown(example: ExampleRow) -> Text:
    text = Text(_cut(example.prompt))
    if example.prompt_tokens is not None:
        text.append(f"[{example.prompt_tokens} tokens]", style="dim")
    for answer in example.answers:
        count = "" if answer.tokens is None else f", {answer.tokens} tokens"
        text.append(f"\n{_printable(answer.verdict)}{count}: ", style="bold")
        text.append(_cut(answer.text))
    return text


def _cut(text: str) -> str:
    """Text without control characters, shortened in its middle."""
    half = _SHOWN_CHARACTERS // 2
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    return _printable(text)


def _printable(text: str) -> str:
    """Data may hold escape codes, which a terminal would obey."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)
