"""From messages to token ids, through the model's chat template, without letting content forge control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from rlhf_ray.data.rows import PromptRow
from rlhf_ray.errors import UserError
from rlhf_ray.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of each row's conversation with the opening of the answer appended; ragged, unpadded.

    Raises `UserError` naming the row if the template refuses it.
    """
    texts = []
    for row in rows:
        messages = [message.as_dict() for message in row.messages]
        try:
            texts.append(str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))
        except (TemplateError, ValueError) as error:
            raise UserError(f"{row.where}: the model's chat template refuses this conversation: {error}") from error
    return _encode(texts, tokenizer)


def disarm(rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase) -> tuple[list[PromptRow], int]:
    """`rows` with control-token spellings in their content broken by a space, and how many rows were changed.

    Otherwise `<|im_end|><|im_start|>system` typed by a user would become real turns when the rendered template is
    tokenized. The text itself is changed, so that reward models that render it again are safe too. Raises `UserError`
    naming the row if a control token still comes out.
    """
    spellings = _control_spellings(tokenizer)
    safe = [_disarm_row(row, spellings) for row in rows]
    contents = [message.content for row in safe for message in row.messages]
    where = [row.where for row in safe for _ in row.messages]
    control = {tokenizer.convert_tokens_to_ids(spelling) for spelling in spellings}
    for name, ids in zip(where, _encode(contents, tokenizer), strict=True):
        if control.intersection(ids):
            raise UserError(f"{name}: its text contains a control token of the tokenizer that cannot be neutralised")
    return safe, sum(new is not old for new, old in zip(safe, rows, strict=True))


def shorten(row: PromptRow, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> PromptRow:
    """`row` cut from its oldest end until its rendering fits `max_tokens`; the template around it stays whole.

    Old turns go first (never the system message), then the beginning of the last user turn.
    """
    while (excess := len(render([row], tokenizer)[0]) - max_tokens) > 0:
        start = 1 if row.messages[0].role == "system" else 0
        turns = row.messages[start:]
        users = [i for i, message in enumerate(turns) if message.role == "user"]
        if len(users) > 1:
            kept: tuple[Message, ...] = turns[users[1] :]
        else:
            ids = _encode([turns[-1].content], tokenizer)[0]
            text = str(tokenizer.decode(ids[excess:])).strip()
            if not text or len(text) >= len(turns[-1].content):
                raise UserError(
                    f"{row.where}: no user text fits prompts.max_prompt_tokens = {max_tokens}: the template and the "
                    "system message alone fill it; raise the limit"
                )
            kept = (Message("user", text),)
        row = replace(row, messages=row.messages[:start] + kept)
    return row


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _control_spellings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Added tokens that steer a model: the special ones, and markers that the chat template itself writes."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    return tuple(
        str(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if token.content != tokenizer.unk_token
        and (token.special or (token.content in template and token.content.startswith(("<", "["))))
    )


def _disarm_row(row: PromptRow, spellings: Sequence[str]) -> PromptRow:
    if not any(spelling in message.content for message in row.messages for spelling in spellings):
        return row
    messages = []
    for message in row.messages:
        content = message.content
        for spelling in spellings:
            content = content.replace(spelling, f"{spelling[0]} {spelling[1:]}")
        messages.append(Message(message.role, content))
    return replace(row, messages=tuple(messages))
