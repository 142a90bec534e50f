"""Conversations in rows: message lists, plain prompts, and the raw text of Anthropic HH."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rlhf_ray.data.fields import BadRow, Row, as_json, as_text, given, kind_of
from rlhf_ray.types import Message

Messages = tuple[Message, ...]

_ROLES = ("system", "user", "assistant")
_HH_START = re.compile(r"\s*(Human|Assistant):")
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def as_messages(value: object, key: str) -> Messages:
    """A list of `{"role", "content"}` objects, also one spelled in JSON: a system message, if any, and then user and
    assistant in turn."""
    found = as_json(value, key)
    if not isinstance(found, list) or not found:
        cause = "an empty list" if found == [] else kind_of(found)
        raise BadRow(f"{key} is neither a string nor a list of messages but {cause}", "write [{role, content}, ...]")
    messages: list[Message] = []
    for position, turn in enumerate(found, start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if role not in _ROLES:
            raise BadRow(f"{key}: turn {position} has the role {role!r:.40}", f"use one of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise BadRow(f"{key}: the content of turn {position} is {kind_of(content)}", "it must be text")
        if content.strip():
            as_text(content, f"{key}: turn {position}")
        messages.append(Message(role, content))
    return tuple(messages)


def check_order(messages: Messages, key: str) -> Messages:
    """`messages`, or `BadRow` unless a system message comes first only and user and assistant take turns after it."""
    turns = messages[1:] if messages[0].role == "system" else messages
    for position, turn in enumerate(turns):
        expected = "assistant" if position % 2 else "user"
        if turn.role != expected:
            number = position + 1 + len(messages) - len(turns)
            raise BadRow(
                f"{key}: turn {number} has the role {turn.role} where {expected} was expected",
                "order the turns: system (first only), then user and assistant in turn",
            )
    return messages


def as_prompt(value: object, key: str) -> Messages:
    """A prompt: text, messages that end with the user, or Anthropic HH's text that ends with an open `Assistant:`."""
    if isinstance(value, str):
        text = as_text(value, key)
        if not text.startswith("\n\nHuman:"):
            return (Message("user", text),)
        messages = hh_messages(text, key)
        messages = messages[:-1] if messages[-1] == Message("assistant", "") else messages
    else:
        messages = check_order(as_messages(value, key), key)
    if messages[-1].role != "user":
        role = messages[-1].role
        raise BadRow(f"{key} ends with a turn of role {role}, expected user", "move an answer to its own key")
    as_text(messages[-1].content, f"the last user turn of {key}")
    return messages


def prompt_of(row: Row) -> Messages:
    """The prompt of a row: `prompt`, or `instruction` followed by `input` if there is one."""
    if "prompt" in row:
        return as_prompt(row["prompt"], "prompt")
    if "instruction" not in row:
        raise BadRow(f"prompt is missing (the row has: {', '.join(row) or 'nothing'})", "add it")
    parts = [as_text(row[key], key) for key in ("instruction", "input") if key == "instruction" or given(row, key)]
    return (Message("user", "\n\n".join(parts)),)


def is_hh(text: str) -> bool:
    """True for text that begins with a speaker as Anthropic HH writes them."""
    return bool(_HH_START.match(text))


def hh_messages(text: str, key: str) -> Messages:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...` (Bai et al. 2022, arXiv 2204.05862).

    Neighbouring turns of one speaker become one turn: chat templates want them to alternate.
    """
    head, *parts = _HH_TURN.split(as_text(text, key))
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = _HH_ROLES[speaker]
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{content.strip()}".strip())
        else:
            turns.append(Message(role, content.strip()))
    if head.strip() or not turns or turns[0].role != "user":
        raise BadRow(
            f"{key} is text that does not begin with a turn of the Human",
            "write a message list or '\\n\\nHuman: ... \\n\\nAssistant: ...'",
        )
    return tuple(turns)


def conversation(value: object, key: str, prompt: Messages | None) -> tuple[Messages, str]:
    """`(prompt, answer)` of an answer, which may be text, a message of the assistant, or a whole conversation.

    `prompt` is the row's own, if it has one: a whole conversation must end with it before the answer.
    """
    if isinstance(value, str) and prompt is not None:
        return prompt, as_text(value, key)
    messages = hh_messages(value, key) if isinstance(value, str) else as_messages(value, key)
    if messages[-1].role != "assistant":
        raise BadRow(f"{key} ends with a message of role {messages[-1].role}, not of the assistant", "add the answer")
    before, answer = messages[:-1], as_text(messages[-1].content, key)
    if not before:
        if prompt is None:
            raise BadRow(f"{key} is an answer without a prompt", "add the key prompt or the earlier messages")
        return prompt, answer
    check_order(messages, key)
    if prompt is not None and before[-len(prompt) :] != prompt:
        raise BadRow(f"{key} begins with messages that differ from prompt", "make them equal or remove prompt")
    as_text(before[-1].content, f"the last user turn of {key}")
    return before, answer
