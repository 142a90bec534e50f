"""Is this feedback fit to train on? One pass over the data in bounded memory, and everything worth knowing about it."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rlhf_ray.data.agreement import AgreementCounter
from rlhf_ray.data.check_examples import ExamplePicker
from rlhf_ray.data.check_lengths import LengthBiasCounter, TokenCounter, render_prompt
from rlhf_ray.data.check_report import BadRowFound, BadRows, Duplicates, Leak, NearDuplicate, Report
from rlhf_ray.data.checked_rows import UsableRow, fingerprint, other_prompts, prompt_hash, read_batches
from rlhf_ray.data.duplicates import NearDuplicateFinder, SeenHashes
from rlhf_ray.data.feedback import FeedbackConfig
from rlhf_ray.data.shapes import BadRow
from rlhf_ray.evidence import Demonstration, Pair, PromptOnly, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_BAD = 10
_SHOWN = 3
_EMPTY_ANSWER = re.compile(r"(chosen|rejected|completion|response|answer).* is empty$")
_IDENTICAL_ANSWERS = re.compile(r" are the same text\b")


def check(
    config: FeedbackConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    other: FeedbackConfig | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Report:
    """Reads all rows of `config` once and reports on them; bad rows are counted, whatever `on_bad_row` says.

    Without a tokenizer nothing is said about tokens. `other` is data whose prompts must not be here too. `on_rows` is
    called with the number of rows read so far. Memory grows by some 150 bytes a row. Raises `UserError` if a file is
    missing, corrupt or empty.
    """
    work = _Check(config, tokenizer, other_prompts(config, other))
    for batch in read_batches(config):
        work.take(batch.usable, batch.refused)
        if on_rows:
            on_rows(work.rows)
    return work.report()


class _Check:
    """What is known about the rows so far."""

    def __init__(
        self,
        config: FeedbackConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        others: Sequence[tuple[str, SeenHashes]],
    ) -> None:
        self.rows = 0
        self._path = config.path
        self._tokenizer = tokenizer
        self._tokens = TokenCounter(tokenizer, config.max_tokens) if tokenizer else None
        self._bad = _BadRowLog()
        self._repeats = _RepeatFinder()
        self._leaks = [_LeakFinder(name, prompts) for name, prompts in others]
        self._agreement = AgreementCounter()
        self._bias = LengthBiasCounter()
        self._prompts, self._different_prompts = SeenHashes(), 0
        self._shapes, self._kinds, self._objectives = Counter[str](), Counter[str](), Counter[str]()
        self._ties = 0
        self._examples = ExamplePicker()

    def take(self, usable: Sequence[UsableRow], refused: Sequence[BadRowFound]) -> None:
        """Takes a batch in."""
        self.rows += len(usable) + len(refused)
        for bad in refused:
            self._bad.add(bad)
        rows, rendered = [], []
        for row in usable:
            try:
                rendered.append(render_prompt(row.prompt, self._tokenizer))
                rows.append(row)
            except BadRow as error:
                self._bad.add(BadRowFound(row.where, error.cause, error.fix))
        if not rows:
            return
        lengths = self._tokens.take(rows, rendered) if self._tokens else None
        hashes = [prompt_hash(row.prompt) for row in rows]
        self._different_prompts += self._prompts.add_and_tell(hashes).count(False)
        self._repeats.take(rows)
        for leak in self._leaks:
            leak.take(rows, hashes)
        for i, row in enumerate(rows):
            of_row = lengths[i] if lengths else None
            self._count(row, of_row.answers.__getitem__ if of_row else len)
            self._examples.take(row, rendered[i], of_row)

    def report(self) -> Report:
        """All of it."""
        bad = self._bad.result()
        return Report(
            path=self._path,
            rows=self.rows,
            usable=self.rows - bad.total,
            prompts=self._different_prompts,
            shapes=dict(self._shapes),
            kinds=dict(self._kinds),
            objectives=dict(self._objectives),
            ties=self._ties,
            examples=self._examples.result(),
            bad=bad,
            duplicates=self._repeats.result(),
            leaks=tuple(leak.result() for leak in self._leaks),
            tokens=self._tokens.result() if self._tokens else None,
            annotators=self._agreement.annotators,
            agreement=self._agreement.result(),
            length_bias=self._bias.result(tokens=self._tokens is not None),
        )

    def _count(self, row: UsableRow, length: Callable[[str], int]) -> None:
        self._shapes[row.shape] += 1
        self._bias.take(row.items, length)
        for item in row.items:
            self._kinds[item.kind] += 1
            if isinstance(item, Demonstration | PromptOnly):
                continue
            self._objectives[item.label.objective] += 1
            self._ties += item.tie if isinstance(item, Pair) else False
            self._ties += len(set(item.ranks)) == 1 if isinstance(item, Ranking) else False
            self._agreement.add(item)


class _BadRowLog:
    """Counts bad rows and keeps the first."""

    def __init__(self) -> None:
        self._total = self._empty = self._identical = 0
        self._first: list[BadRowFound] = []

    def add(self, bad: BadRowFound) -> None:
        self._total += 1
        self._empty += bool(_EMPTY_ANSWER.match(bad.cause))
        self._identical += bool(_IDENTICAL_ANSWERS.search(bad.cause))
        if len(self._first) < _SHOWN_BAD:
            self._first.append(bad)

    def result(self) -> BadRows:
        return BadRows(self._total, self._empty, self._identical, tuple(self._first))


class _RepeatFinder:
    """Finds exact and near-duplicates among usable rows, and can say afterwards where they are."""

    def __init__(self) -> None:
        self._seen, self._near = SeenHashes(), NearDuplicateFinder()
        self._exact = 0
        self._first_exact: list[str] = []
        # Places of the rows given to the finder, 12 bytes each: "name.jsonl row 3" is 3 and the number of its name.
        self._names: dict[str, int] = {}
        self._name, self._number = array("I"), array("Q")

    def take(self, rows: Sequence[UsableRow]) -> None:
        known = self._seen.add_and_tell([fingerprint(row.items) for row in rows])
        repeated = [row.where for row, again in zip(rows, known, strict=True) if again]
        self._exact += len(repeated)
        self._first_exact += repeated[: _SHOWN - len(self._first_exact)]
        new = [row for row, again in zip(rows, known, strict=True) if not again]
        if not new:
            return
        for row in new:
            name, _, number = row.where.rpartition(" ")
            self._name.append(self._names.setdefault(name, len(self._names)))
            self._number.append(int(number))
        prompts = ["\n".join(message.content for message in row.prompt) for row in new]
        self._near.add(prompts, ["\n".join(row.answers) for row in new])

    def result(self) -> Duplicates:
        near, pairs = self._near.result(_SHOWN)
        first = [NearDuplicate(self._where(p.row), self._where(p.earlier), p.similarity) for p in pairs]
        return Duplicates(self._exact, near, tuple(self._first_exact), tuple(first))

    def _where(self, row: int) -> str:
        return f"{list(self._names)[self._name[row]]} {self._number[row]}"


class _LeakFinder:
    """Counts the rows whose prompt is in other data."""

    def __init__(self, other: str, prompts: SeenHashes) -> None:
        self._other, self._prompts = other, prompts
        self._rows = 0
        self._first: list[str] = []

    def take(self, rows: Sequence[UsableRow], hashes: Sequence[int]) -> None:
        leaked = [row.where for row, known in zip(rows, self._prompts.holds(hashes), strict=True) if known]
        self._rows += len(leaked)
        self._first += leaked[: _SHOWN - len(self._first)]

    def result(self) -> Leak:
        return Leak(self._other, self._rows, tuple(self._first))
