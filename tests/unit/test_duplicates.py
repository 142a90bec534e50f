"""Duplicates against brute force."""

from __future__ import annotations

import random

import numpy as np

from rlhf_ray.data.duplicates import NearDuplicateFinder, SeenHashes, text_hash

WORDS = [f"word{number}" for number in range(2000)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def corpus(count: int, seed: int) -> list[str]:
    """Texts of which some are edited copies of earlier ones, from one word to half of them changed."""
    draw = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(40, 120))
        if texts and draw.random() < 0.6:
            words = draw.choice(texts).split()
            for _ in range(int(len(words) * draw.choice([0.0, 0.01, 0.02, 0.1, 0.2, 0.4]))):
                words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def flagged(prompts: list[str], answers: list[str], batch: int = 64) -> set[int]:
    finder = NearDuplicateFinder()
    for start in range(0, len(prompts), batch):
        finder.add(prompts[start : start + batch], answers[start : start + batch])
    count, pairs = finder.result(examples=len(prompts))
    rows = {pair.row for pair in pairs}
    assert len(rows) == count
    assert all(pair.earlier < pair.row and 0.75 <= pair.similarity <= 1 for pair in pairs)
    return rows


def test_against_brute_force() -> None:
    answers = corpus(400, seed=1)
    sets = [shingles(answer) for answer in answers]
    nearest = [max((jaccard(sets[i], sets[j]) for j in range(i)), default=0.0) for i in range(len(answers))]
    must = {i for i, value in enumerate(nearest) if value > 0.9}
    must_not = {i for i, value in enumerate(nearest) if value < 0.5}
    assert len(must) > 50 and len(must_not) > 100
    found = flagged(["Tell me about words."] * len(answers), answers)
    assert must <= found
    assert not must_not & found


def test_prompts_and_answers_must_both_be_alike() -> None:
    one, other, third = corpus(3, seed=2)[0], " ".join(WORDS[:60]), " ".join(WORDS[100:160])
    assert flagged([one, one], [other, third]) == set()  # two answers to one long prompt
    assert flagged([other, third], ["I do not know."] * 2) == set()  # one short answer to two prompts
    assert flagged([one, one.upper()], [other, other + "!"]) == {1}  # case and punctuation aside
    assert flagged([one, third, one], ["", "", ""]) == {2}  # prompts alone


def test_the_batches_do_not_matter() -> None:
    texts = corpus(200, seed=3)
    prompts = ["A question", "", "Why? \ud800"] * 67
    assert flagged(prompts[:200], texts, batch=7) == flagged(prompts[:200], texts, batch=200)


def test_no_rows() -> None:
    assert NearDuplicateFinder().result() == (0, ())


def test_signs_of_chinese_are_words() -> None:
    text = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    assert flagged(["问题"] * 2, [text, text[:30] + "新" + text[31:]]) == {1}
    assert flagged(["问题"] * 2, [text, text[:10] + text[:20:-1]]) == set()


def test_seen_hashes_are_a_set() -> None:
    draw = np.random.default_rng(0)
    seen, oracle = SeenHashes(), set[int]()
    for _ in range(40):
        batch = [int(value) << 40 for value in draw.integers(0, 200_000, 5000)]
        expected = []
        for value in batch:
            expected.append(value in oracle)
            oracle.add(value)
        assert seen.add_and_tell(batch) == expected
    assert seen.holds([min(oracle), 1, max(oracle)]) == [True, False, True]


def test_hashes_tell_where_a_text_ends() -> None:
    assert text_hash("ab", "c") == text_hash("ab", "c")
    assert len({text_hash("ab", "c"), text_hash("a", "bc"), text_hash("abc"), text_hash("c", "ab")}) == 4
