"""From conversations to token ids, as a reward model reads them. Training and scoring share `TextEncoder`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from rlhf_ray.errors import UserError
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = tuple[tuple[Message, ...], str]
"""The prompt's messages and the assistant's answer."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One answer to one prompt as token ids."""

    ids: tuple[int, ...]
    """Joint: prompt and answer. Separate: the answer."""
    prompt_length: int
    """Joint: how many of the leading ids are the prompt's. Separate: 0."""
    prompt_ids: tuple[int, ...] | None
    """Separate: the prompt."""
    truncated: bool
    """True if something was cut to fit the limit."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.prompt_ids or ())


class TextEncoder:
    """A tokenizer and the way a model of one make reads text. Control tokens spelled out in a text are broken by a
    space: an answer must not be able to forge a turn and have that scored.

    Decoder, joint: the chat template; what is too long loses its beginning, so that the answer stays whole as long as
    it fits. Decoder, separate: the prompt's template with the answer opened, and the answer, closed by the end of
    sequence. Encoder: prompt ("role: content" lines) and answer as a sentence pair, or each on its own. In the last
    three a conversation that is too long loses the beginning of its prompt, then the end of its answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self._control = _control_tokens(tokenizer)
        if spec.backbone == "encoder":
            self._pair, self._single = _frame(tokenizer, 2), _frame(tokenizer, 1)
            room = spec.max_tokens - (2 * len(sum(self._single, ())) if spec.separate else len(sum(self._pair, ())))
        else:
            room = spec.max_tokens - 2 * spec.separate
        if room < 1:
            raise UserError(f"max_tokens = {spec.max_tokens} leaves no room for text beside the control tokens")
        self._room = room

    @property
    def padding(self) -> int:
        """The id that fills rows up. Some encoders count positions by it; a decoder never sees it."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def __call__(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """The token ids of each conversation, in their order; a `UserError` if the chat template refuses one."""
        if not conversations:
            return []
        safe = [(tuple(self._disarmed(m) for m in prompt), self._broken(answer)) for prompt, answer in conversations]
        if self.spec.backbone == "encoder":
            return self._encoder(safe)
        return self._decoder_apart(safe) if self.spec.separate else self._decoder_joint(safe)

    def _decoder_joint(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        limit = self.spec.max_tokens
        closed = self._ids([self._render((*prompt, Message("assistant", a)), False) for prompt, a in conversations])
        opened = closed
        if self.spec.gated:  # nothing else asks where the prompt ends
            opened = self._ids([self._render(prompt, True) for prompt, _ in conversations])
        rows = []
        for whole, start in zip(closed, opened, strict=True):
            cut = max(0, len(whole) - limit)
            prompt = max(0, _common(whole, start) - cut) if self.spec.gated else 0
            rows.append(Encoded(tuple(whole[cut:]), prompt, None, cut > 0))
        return rows

    def _decoder_apart(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise UserError("the tokenizer has no eos_token, which closes an answer; set it in tokenizer_config.json")
        prompts = self._ids([self._render(prompt, True) for prompt, _ in conversations])
        answers = self._ids([answer for _, answer in conversations])
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            kept = answer[: self._room]
            left = max(1, self._room + 1 - len(kept))
            cut = len(kept) < len(answer) or left < len(prompt)
            rows.append(Encoded((*kept, end), 0, tuple(prompt[-left:]), cut))
        return rows

    def _encoder(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        lines = ["\n".join(f"{m.role}: {m.content}" for m in prompt) for prompt, _ in conversations]
        prompts, answers = self._ids(lines), self._ids([answer for _, answer in conversations])
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            end = answer[: self._room]
            left = self._room - len(end)
            start = prompt[max(0, len(prompt) - left) :]
            cut = len(end) < len(answer) or len(start) < len(prompt)
            if self.spec.separate:
                before, after = self._single
                rows.append(Encoded((*before, *end, *after), 0, (*before, *start, *after), cut))
            else:
                before, between, after = self._pair
                first = (*before, *start, *between)
                rows.append(Encoded((*first, *end, *after), len(first), None, cut))
        return rows

    def _render(self, messages: Sequence[Message], answer_follows: bool) -> str:
        shown = [message.as_dict() for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=answer_follows))
        except (TemplateError, ValueError) as error:
            raise UserError(f"the model's chat template refuses this conversation: {error}") from error

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _disarmed(self, message: Message) -> Message:
        return Message(message.role, self._broken(message.content))

    def _broken(self, text: str) -> str:
        for spelling in self._control:
            text = text.replace(spelling, f"{spelling[0]} {spelling[1:]}")
        return text


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens, and markers that the chat template itself writes; the longest first."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    added = tokenizer.added_tokens_decoder.values()
    marks = {token.content for token in added if token.content.startswith(("<", "[")) and token.content in template}
    found = marks | {token.content for token in added if token.special}
    return tuple(sorted(found | set(tokenizer.all_special_tokens), key=lambda spelling: (-len(spelling), spelling)))


def _frame(tokenizer: PreTrainedTokenizerBase, texts: int) -> tuple[tuple[int, ...], ...]:
    """The control tokens that the tokenizer puts before, between and after that many texts."""
    encoded = tokenizer(*["a"] * texts, return_special_tokens_mask=True)
    parts: list[list[int]] = [[]]
    inside = False
    for token, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        if special:
            parts[-1].append(token)
        elif not inside:
            parts.append([])
        inside = not special
    if len(parts) != texts + 1:  # two texts with nothing between them
        raise UserError("the tokenizer does not mark where one text ends and the next begins; take another encoder")
    return tuple(tuple(part) for part in parts)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens are the same. The last of a prompt may have merged with the answer's first letter."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
