"""How long feedback is, in the tokens of a model, and whether the longer answer wins."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from rlhf_ray.data.check_report import Distribution, LengthBias, TokenLengths
from rlhf_ray.data.checked_rows import UsableRow
from rlhf_ray.data.shapes import BadRow
from rlhf_ray.evidence import Item, Pair, Ranking
from rlhf_ray.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Tokens of a row: of its rendered prompt, and of each different answer without the end of sequence."""

    prompt: int
    answers: dict[str, int]


def render_prompt(prompt: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The prompt as the model sees it, up to where the answer begins: through the chat template, or without one as
    `role: content` lines, which is what encoders read. Raises `BadRow` if the template refuses the conversation."""
    if tokenizer is None or not tokenizer.chat_template:
        return "\n".join(f"{message.role}: {message.content}" for message in prompt)
    messages = [message.as_dict() for message in prompt]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError) as error:
        raise BadRow(f"the model's chat template refuses this conversation: {error}", "change its turns") from None


class TokenCounter:
    """Counts tokens a batch at a time and keeps 4 bytes for each prompt and answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._prompts, self._answers = array("I"), array("I")
        self._overlong = self._longest = 0
        self._longest_where = ""

    def take(self, rows: Sequence[UsableRow], prompts: Sequence[str]) -> list[RowLengths]:
        """The lengths of `rows`, whose prompts are rendered as `prompts`."""
        answers = [row.answers for row in rows]
        counts = iter(self._count([*prompts, *(answer for group in answers for answer in group)]))
        of_prompts = [next(counts) for _ in rows]
        found = []
        for row, prompt, group in zip(rows, of_prompts, answers, strict=True):
            lengths = RowLengths(prompt, {answer: next(counts) for answer in group})
            self._add(row.where, lengths)
            found.append(lengths)
        return found

    def result(self) -> TokenLengths | None:
        """The lengths of all rows taken, None if there were none."""
        prompts = _distribution(self._prompts)
        if prompts is None:
            return None
        return TokenLengths(
            max_tokens=self._max_tokens,
            overlong=self._overlong,
            longest=self._longest,
            longest_where=self._longest_where,
            prompts=prompts,
            answers=_distribution(self._answers),
            total=sum(self._prompts) + sum(self._answers),
        )

    def _add(self, where: str, lengths: RowLengths) -> None:
        self._prompts.append(lengths.prompt)
        self._answers.extend(lengths.answers.values())
        whole = lengths.prompt + max((count + 1 for count in lengths.answers.values()), default=0)  # 1: its end
        self._overlong += whole > self._max_tokens
        if whole > self._longest:
            self._longest, self._longest_where = whole, where

    def _count(self, texts: list[str]) -> list[int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            ids = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return [len(row) for row in ids]
        backend.no_truncation()  # a tokenizer file may ask for both
        backend.no_padding()
        return [len(encoding) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


class LengthBiasCounter:
    """Counts the comparisons that the longer answer wins."""

    def __init__(self) -> None:
        self._won = self._comparisons = 0

    def take(self, items: Iterable[Item], length: Callable[[str], int]) -> None:
        """Takes comparisons in. Ties and answers of equal length say nothing."""
        for item in items:
            for better, worse in _preferences(item):
                long, short = length(better), length(worse)
                self._comparisons += long != short
                self._won += long > short

    def result(self, tokens: bool) -> LengthBias | None:
        """The share of comparisons won, None if there were none."""
        if not self._comparisons:
            return None
        return LengthBias(self._won / self._comparisons, self._comparisons, "tokens" if tokens else "characters")


def _preferences(item: Item) -> list[tuple[str, str]]:
    if isinstance(item, Pair):
        return [] if item.tie else [(item.chosen, item.rejected)]
    if isinstance(item, Ranking):  # best first
        ranked = zip(item.answers, item.ranks, strict=True)
        return [(a, b) for (a, better), (b, worse) in combinations(ranked, 2) if better < worse]
    return []


def _distribution(lengths: array[int]) -> Distribution | None:
    if not lengths:
        return None
    values = np.frombuffer(lengths, dtype=np.uint32)
    p50, p95 = np.percentile(values, [50, 95], method="inverted_cdf")  # lengths that occur
    return Distribution(len(values), int(p50), int(p95), int(values.max()))
