"""From conversations with answers to token ids for training: the prompt as it is at inference, each answer to its end.

Prompt and answer are tokenized apart, so the tokens of the prompt are those that a model sees when it answers, whatever
the answer begins with. An answer ends with the end-of-sequence token and nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rlhf_ray.data.chat import disarm, render, shorten
from rlhf_ray.data.rows import PromptRow
from rlhf_ray.errors import UserError
from rlhf_ray.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the answers to it that a training row holds. `where` names file and row; `label` rides along."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    where: str
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a `Conversation`: the prompt's, and each answer's with its end of sequence."""

    prompt_ids: list[int]
    answer_ids: tuple[list[int], ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longest answer."""
        return len(self.prompt_ids) + max(len(answer) for answer in self.answer_ids)


class Encoder:
    """Encodes conversations lazily. `shortened` counts prompts that lost their beginning; `too_long` counts those that
    were left out because no prompt fits beside their answers; `rows` counts what came out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos_token, so an answer has no end; set it in tokenizer_config.json")
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self.rows = self.shortened = self.too_long = 0

    def __call__(self, conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, Encoded]]:
        """Each conversation that fits, with its token ids, in order and in bounded memory."""
        source = iter(conversations)
        while chunk := list(islice(source, _CHUNK)):
            yield from self._encode(chunk)

    def notes(self) -> list[str]:
        """What was changed or left out so far, in sentences."""
        limit, notes = self._max_tokens, []
        if self.shortened:
            notes.append(f"{self.shortened} prompts are cut at their beginning to fit data.max_tokens = {limit}")
        if self.too_long:
            total = self.rows + self.too_long
            notes.append(
                f"{self.too_long} of {total} rows are left out: their answers alone fill data.max_tokens = {limit}"
            )
        return notes

    def _encode(self, chunk: Sequence[Conversation]) -> Iterator[tuple[Conversation, Encoded]]:
        rows, answers = self._disarmed(chunk)
        prompts = render(rows, self._tokenizer)
        flat = self._answers([(row, answer) for row, group in zip(rows, answers, strict=True) for answer in group])
        at = 0
        for conversation, row, prompt_ids in zip(chunk, rows, prompts, strict=True):
            ids = tuple(flat[at : at + len(conversation.answers)])
            at += len(ids)
            room = self._max_tokens - max(len(answer) for answer in ids)
            if len(prompt_ids) > room:
                shorter = self._shortened(row, room)
                if shorter is None:
                    self.too_long += 1
                    continue
                self.shortened += 1
                prompt_ids = shorter
            self.rows += 1
            yield conversation, Encoded(prompt_ids, ids)

    def _disarmed(self, chunk: Sequence[Conversation]) -> tuple[list[PromptRow], list[tuple[str, ...]]]:
        """Prompts and answers in which no text spells a control token."""
        rows = [PromptRow(c.where, c.where, c.prompt) for c in chunk]
        spoken = [
            PromptRow(c.where, c.where, tuple(Message("assistant", answer) for answer in c.answers)) for c in chunk
        ]
        safe, _ = disarm(rows, self._tokenizer)
        safe_answers, _ = disarm(spoken, self._tokenizer)
        return safe, [tuple(message.content for message in row.messages) for row in safe_answers]

    def _answers(self, pairs: Sequence[tuple[PromptRow, str]]) -> list[list[int]]:
        texts = [self._answer_text(row, answer) for row, answer in pairs]
        encoded: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [self._ended(ids) for ids in encoded]

    def _answer_text(self, row: PromptRow, answer: str) -> str:
        """What the chat template writes after the opening of the answer."""
        messages = [message.as_dict() for message in row.messages]
        spoken = [*messages, {"role": "assistant", "content": answer}]
        opening = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        whole = str(self._tokenizer.apply_chat_template(spoken, tokenize=False))
        if not whole.startswith(opening):
            raise UserError(
                f"{row.where}: the model's chat template writes a prompt differently once it is answered, so the "
                "answer cannot be told from it; use a template with the prefix property"
            )
        return whole[len(opening) :]

    def _ended(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        if end in ids:
            return ids[: len(ids) - ids[::-1].index(end)]
        return [*ids, end]

    def _shortened(self, row: PromptRow, room: int) -> list[int] | None:
        try:
            return render([shorten(row, self._tokenizer, room)], self._tokenizer)[0]
        except UserError:  # not even the end of the last turn fits
            return None
