"""Preference pairs from JSONL: an explicit prompt, an implicit one, or the raw text of Anthropic HH."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.errors import UserError
from rlhf_ray.types import Message

DEMO = Path(__file__).parent / "demo" / "preferences.jsonl"
HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, of which `chosen` is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def read_preferences(path: str | Path) -> list[PreferencePair]:
    """The pairs of a .jsonl or .jsonl.gz file, in its order; `demo` is the package's own file.

    A row has `chosen` and `rejected` and one of three forms: `prompt` (a string or messages) with answers as strings
    or single assistant messages; no prompt, and conversations as message lists that share all but the last message;
    no prompt, and conversations as "\\n\\nHuman: ...\\n\\nAssistant: ..." text (Anthropic HH). Other keys are ignored.
    Raises `UserError` naming the file, the malformed rows (counted from 1) and what is wrong with them.
    """
    file = DEMO if str(path) == "demo" else Path(path).expanduser()
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"data.path {path}: preferences are read from .jsonl or .jsonl.gz files, or `demo`")
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            lines = stream.readlines()
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"data.path {path}: cannot read {file}: {error}") from error
    pairs, problems = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                pairs.append(_pair(json.loads(line)))
            except ValueError as error:
                problems.append(f"row {number}: {error}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{file}, {'; '.join(problems[:3])}{more}. Mend or remove {len(problems)} of {len(lines)} rows")
    if not pairs:
        raise UserError(f"data.path {path}: {file} holds no preference pair")
    return pairs


def split_by_prompt(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """`(train, heldout)`: whole prompts, in an order drawn from `seed`, are held out until about `heldout_fraction` of
    the pairs are; pairs keep their order. No prompt is in both parts, because answers to one prompt are alike and a
    split across them would flatter the accuracy. Raises `UserError` if there are fewer than two prompts."""
    sizes: dict[tuple[Message, ...], int] = {}
    for pair in pairs:
        sizes[pair.prompt] = sizes.get(pair.prompt, 0) + 1
    if len(sizes) < 2:
        raise UserError("data.path: holding out pairs needs at least two different prompts; add pairs with others")
    prompts = list(sizes)
    random.Random(seed).shuffle(prompts)
    wanted = max(1, round(heldout_fraction * len(pairs)))
    heldout: set[tuple[Message, ...]] = set()
    held = 0
    for prompt in prompts[:-1]:  # one prompt always stays for training
        if held >= wanted:
            break
        heldout.add(prompt)
        held += sizes[prompt]
    return [p for p in pairs if p.prompt not in heldout], [p for p in pairs if p.prompt in heldout]


def _pair(row: object) -> PreferencePair:
    """One row as a pair; `ValueError` says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; a pair needs chosen and rejected")
    given = _prompt(row["prompt"]) if row.get("prompt") is not None else None
    chosen_prompt, chosen = _conversation(row["chosen"], "chosen", given)
    rejected_prompt, rejected = _conversation(row["rejected"], "rejected", given)
    if chosen_prompt != rejected_prompt:
        raise ValueError("chosen and rejected differ before their last message, so they do not answer one prompt")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise ValueError(f"{name} is empty")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same text, so the pair says nothing")
    return PreferencePair(chosen_prompt, chosen, rejected)


def _conversation(
    value: object, key: str, given: tuple[Message, ...] | None
) -> tuple[tuple[Message, ...], str]:
    """`(prompt, answer)` of `row[key]`, with the row's explicit prompt `given`, if any."""
    if isinstance(value, str) and given is not None:
        return given, value
    messages = _hh_messages(value, key) if isinstance(value, str) else _messages(value, key)
    if messages[-1].role != "assistant":
        raise ValueError(f"{key} ends with a message of role {messages[-1].role}, not of the assistant")
    prompt, answer = messages[:-1], messages[-1].content
    if given is not None:
        if prompt and prompt[-len(given) :] != given:
            raise ValueError(f"{key} begins with messages that differ from prompt")
        prompt = prompt or given
    if not prompt:
        raise ValueError(f"{key} is an answer without a prompt; add the key prompt or the earlier messages")
    return prompt, answer


def _prompt(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("prompt is empty")
        return (Message("user", value),)
    return _messages(value, "prompt")


def _messages(value: object, key: str) -> tuple[Message, ...]:
    """A JSON list of `{"role", "content"}` objects as messages."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} is neither a string nor a list of messages")
    messages = []
    for item in value:
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{key} holds a message without a role and a content that are strings")
        messages.append(Message(role, content))
    return tuple(messages)


def _hh_messages(text: str, key: str) -> tuple[Message, ...]:
    """Anthropic HH's raw text (Bai et al. 2022, arXiv 2204.05862) as messages."""
    before, *turns = HH_TURN.split(text)
    if before.strip() or not turns:
        raise ValueError(f"{key} is a string without a prompt; add the key prompt, or begin with '\\n\\nHuman:'")
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return tuple(Message(HH_ROLES[speaker], content.strip()) for speaker, content in pairs)
