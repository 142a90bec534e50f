"""The demo's own rows: their shape, their counts, and that the held-out prompts are unseen."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

Turn = dict[str, str]
Conversation = list[Turn]

PREFERENCES = "preferences.jsonl"
PROMPTS = "prompts.jsonl"
HELDOUT = "heldout.jsonl"


def read_rows(name: str) -> list[dict[str, str | Conversation]]:
    """The rows of one demo file, in order."""
    lines = files("rlhf_ray").joinpath("data", "demo", name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def only_turn(conversation: str | Conversation, role: str) -> str:
    """The text of a conversation that must be one non-empty turn of `role`."""
    assert isinstance(conversation, list)
    assert len(conversation) == 1, conversation
    turn = conversation[0]
    assert set(turn) == {"role", "content"}
    assert turn["role"] == role
    assert turn["content"].strip(), "empty text"
    assert turn["content"] == turn["content"].strip()
    return turn["content"]


def normalized(text: str) -> str:
    """Lower case, without punctuation, single spaces: what two prompts are compared by."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def prompt_texts(name: str) -> list[str]:
    return [only_turn(row["prompt"], "user") for row in read_rows(name)]


def pairs() -> list[tuple[str, str, str]]:
    """`(prompt, chosen, rejected)` of every preference row, after checking its shape."""
    out = []
    for row in read_rows(PREFERENCES):
        assert set(row) == {"prompt", "chosen", "rejected"}
        chosen, rejected = only_turn(row["chosen"], "assistant"), only_turn(row["rejected"], "assistant")
        out.append((only_turn(row["prompt"], "user"), chosen, rejected))
    return out


def complete(text: str) -> bool:
    return text.endswith((".", "!", "?"))


def test_preferences_are_many_over_many_prompts() -> None:
    per_prompt = Counter(prompt for prompt, _, _ in pairs())
    assert sum(per_prompt.values()) >= 300
    assert len(per_prompt) >= 140
    assert sum(n >= 2 for n in per_prompt.values()) > len(per_prompt) / 2


def test_no_pair_is_empty_of_preference_or_repeated() -> None:
    rows = pairs()
    assert all(normalized(chosen) != normalized(rejected) for _, chosen, rejected in rows)
    assert len({tuple(normalized(text) for text in row) for row in rows}) == len(rows)
    assert len({chosen for _, chosen, _ in rows}) == len(rows), "a chosen text serves one pair only"


def test_chosen_are_short_and_complete_and_many_rejected_are_cut_off() -> None:
    rows = pairs()
    assert [chosen for _, chosen, _ in rows if not complete(chosen)] == []
    assert [chosen for _, chosen, _ in rows if not 6 <= len(chosen.split()) <= 26] == []
    cut_off = sum(not complete(rejected) for _, _, rejected in rows) / len(rows)
    assert cut_off >= 0.3
    assert 1 - cut_off >= 0.2, "completeness alone must not decide"


def test_some_rejected_are_shorter_than_chosen() -> None:
    rows = pairs()
    shorter = sum(len(rejected.split()) < len(chosen.split()) for _, chosen, rejected in rows)
    assert shorter / len(rows) >= 0.1, "length alone must not decide"


@pytest.mark.parametrize(
    ("name", "first_id", "least"), [(PROMPTS, "p0001", 200), (HELDOUT, "h01", 48)], ids=["train", "heldout"]
)
def test_prompts_have_ids_in_order_and_differ(name: str, first_id: str, least: int) -> None:
    rows = read_rows(name)
    assert len(rows) >= least
    assert all(set(row) == {"id", "prompt"} for row in rows)
    letter, width = first_id[0], len(first_id) - 1
    assert [row["id"] for row in rows] == [f"{letter}{i:0{width}d}" for i in range(1, len(rows) + 1)]
    assert [text for text, n in Counter(map(normalized, prompt_texts(name))).items() if n > 1] == []


@pytest.mark.parametrize("name", [PREFERENCES, PROMPTS, HELDOUT])
def test_prompts_are_short(name: str) -> None:
    assert [text for text in prompt_texts(name) if not 4 <= len(text.split()) <= 14] == []


def test_there_are_48_heldout_prompts_and_none_is_seen_in_training() -> None:
    heldout = set(map(normalized, prompt_texts(HELDOUT)))
    assert len(heldout) == 48
    assert heldout & set(map(normalized, prompt_texts(PREFERENCES))) == set()
    assert heldout & set(map(normalized, prompt_texts(PROMPTS))) == set()


def test_at_most_half_of_the_prompts_have_preferences() -> None:
    prompts = set(map(normalized, prompt_texts(PROMPTS)))
    shared = prompts & set(map(normalized, prompt_texts(PREFERENCES)))
    assert len(shared) <= len(prompts) / 2
