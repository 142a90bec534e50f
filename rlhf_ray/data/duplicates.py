"""Rows that say the same twice, found in one pass with some 80 bytes a row: hashes for equal ones, MinHash for others.

Two rows are near-duplicates if their prompts are alike and their answers are alike, by the Jaccard similarity of their
sets of three-word shingles, case and punctuation aside. MinHash (Broder 1997, "On the resemblance and containment of
documents") keeps the smallest value of each of 128 hash functions over a set; two sets agree in one of them with
probability equal to their similarity J. Bands of six such values bring rows together that may be alike (Indyk and
Motwani 1998), and one bit of each value (Li and Koenig 2010, "b-Bit Minwise Hashing": they agree with probability
(1 + J) / 2) tells whether they are. Of two rows with J = 0.9, 99.9 % are found; with J = 0.5, 0.1 % are false alarms.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from jaxtyping import Bool, Int, UInt

SIMILAR = 0.75
"""Estimated similarity of prompts and of answers from which two rows count as near-duplicates."""
_WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+")  # Chinese and Japanese have no spaces: a sign is a word
_SHINGLE = 3
_FUNCTIONS = 128
_BANDS = 10
_VALUES = 3  # of the prompt, and as many of the answers, in a band
_SKETCH_WORDS = _FUNCTIONS // 64
_NEIGHBOURS = 3  # earlier rows of a band's bucket that a row is compared with: linear time, whatever the data
_draw = np.random.default_rng(20250101)
_FACTORS, _OFFSETS, _WORD_FACTORS, _BAND_FACTORS = (
    _draw.integers(0, 2**32, size, dtype=np.uint32) | np.uint32(1)
    for size in (_FUNCTIONS, _FUNCTIONS, _SHINGLE, 2 * _VALUES)
)


def text_hash(*parts: str) -> int:
    """64 bits of the texts, their order and where each ends (xxHash)."""
    return xxhash.xxh3_64_intdigest("\x1f".join(f"{len(part)}\x1e{part}" for part in parts).encode("utf-8", "replace"))


class SeenHashes:
    """A growing set of 64-bit hashes: 8 bytes each in a sorted array, and the newest in an ordinary set."""

    def __init__(self) -> None:
        self._sorted: UInt[np.ndarray, " N"] = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, hashes: Iterable[int]) -> None:
        """Takes `hashes` in."""
        self._recent.update(hashes)
        if len(self._recent) > max(1 << 16, len(self._sorted) >> 3):
            new = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.union1d(self._sorted, new)
            self._recent.clear()

    def holds(self, hashes: Sequence[int]) -> list[bool]:
        """Which of `hashes` are in the set."""
        wanted = np.array(hashes, dtype=np.uint64)
        if not len(self._sorted):
            return [value in self._recent for value in hashes]
        place = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        old = (self._sorted[place] == wanted).tolist()
        return [known or value in self._recent for known, value in zip(old, hashes, strict=True)]

    def add_and_tell(self, hashes: Sequence[int]) -> list[bool]:
        """Which of `hashes` were in the set or stand earlier in `hashes`; afterwards all are in the set."""
        known = self.holds(hashes)
        earlier: set[int] = set()
        for position, value in enumerate(hashes):
            known[position] = known[position] or value in earlier
            earlier.add(value)
        self.add(earlier)
        return known


@dataclass(frozen=True, slots=True)
class NearPair:
    """Row numbers, in the order of `NearDuplicateFinder.add` from 0, and the estimated similarity, at most 1."""

    row: int
    earlier: int
    similarity: float


class NearDuplicateFinder:
    """Takes rows in batches, then names those that are near-duplicates of an earlier one."""

    def __init__(self) -> None:
        self._bands, self._sketches = array("I"), array("Q")

    def add(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Takes rows in: the text of each one's prompt, and of all its answers (in any order)."""
        parts = [_minima(texts) for texts in (prompts, answers)]
        self._bands.frombytes(_bands(*parts).tobytes())
        self._sketches.frombytes(np.concatenate([_sketch(part) for part in parts], axis=1).tobytes())

    def result(self, examples: int = 5) -> tuple[int, tuple[NearPair, ...]]:
        """`(how many rows are a near-duplicate of an earlier one, the first few of them)`."""
        sketches = np.frombuffer(self._sketches, dtype=np.uint64).reshape(-1, 2, _SKETCH_WORDS)
        bands = np.frombuffer(self._bands, dtype=np.uint32).reshape(len(sketches), _BANDS)
        flagged = np.zeros(len(sketches), dtype=bool)
        pairs: list[NearPair] = []
        for column in bands.T:
            order = np.argsort(column, kind="stable")  # stable: rows of a bucket keep their order
            values = column[order]
            for lag in range(1, _NEIGHBOURS + 1):
                together = np.flatnonzero(values[lag:] == values[:-lag])
                later, earlier = order[together + lag], order[together]
                similar, alike = _alike(sketches, later, earlier)
                pairs += _first_of(later[alike], earlier[alike], similar[alike], flagged, examples)
                flagged[later[alike]] = True
        return int(flagged.sum()), tuple(sorted(pairs, key=lambda pair: (pair.row, pair.earlier))[:examples])


def _first_of(
    later: Int[np.ndarray, " N"],
    earlier: Int[np.ndarray, " N"],
    similarity: np.ndarray,
    flagged: Bool[np.ndarray, " R"],
    count: int,
) -> list[NearPair]:
    """The `count` earliest rows of `later` that are not flagged yet."""
    new = np.flatnonzero(~flagged[later])
    new = new[np.argsort(later[new], kind="stable")[:count]]
    return [NearPair(int(later[i]), int(earlier[i]), float(similarity[i])) for i in new]


def _alike(
    sketches: UInt[np.ndarray, "R 2 W"], later: Int[np.ndarray, " N"], earlier: Int[np.ndarray, " N"]
) -> tuple[np.ndarray, Bool[np.ndarray, " N"]]:
    """`(similarity, alike)` of pairs of rows; the similarity is the lesser of the prompts' and the answers'."""
    similarity = np.empty(len(later))
    for start in range(0, len(later), 1 << 16):
        part = slice(start, start + (1 << 16))
        differing = np.bitwise_count(sketches[later[part]] ^ sketches[earlier[part]]).sum(axis=2)
        similarity[part] = (1.0 - 2.0 * differing / _FUNCTIONS).min(axis=1)
    return similarity, similarity >= SIMILAR


class _WordHashes(dict[str, int]):
    """32 bits of each word; most words are seen again and again."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 1 << 17:
            self.clear()
        self[word] = xxhash.xxh32_intdigest(word.encode())
        return self[word]


_word_hashes = _WordHashes()


def _minima(texts: Sequence[str]) -> UInt[np.ndarray, "R F"]:
    """The smallest value of each hash function over the shingles of each text; all texts have at least one shingle."""
    hashed, sizes = array("I"), []
    for text in texts:
        words = _WORD.findall(text.encode("utf-8", "replace").decode().casefold())  # JSON can hold half a character
        words += [""] * (_SHINGLE - len(words))
        hashed.extend(map(_word_hashes.__getitem__, words))
        sizes.append(len(words))
    flat = np.frombuffer(hashed, dtype=np.uint32)
    ends = np.cumsum(sizes)
    mixed = sum(
        (flat[i : len(flat) - _SHINGLE + 1 + i] * factor for i, factor in enumerate(_WORD_FACTORS)),
        start=np.zeros(max(len(flat) - _SHINGLE + 1, 0), dtype=np.uint32),
    )
    inside = np.ones(len(mixed), dtype=bool)
    for i in range(1, _SHINGLE):
        inside[ends[:-1] - i] = False  # shingles that would reach into the next text
    shingles = _scramble(mixed[inside])
    starts = np.concatenate([[0], np.cumsum(np.array(sizes) - _SHINGLE + 1)[:-1]])
    minima = np.empty((_FUNCTIONS, len(texts)), dtype=np.uint32)
    values = np.empty_like(shingles)
    for row, factor, offset in zip(minima, _FACTORS, _OFFSETS, strict=True):
        np.multiply(shingles, factor, out=values)
        np.add(values, offset, out=values)
        np.minimum.reduceat(values, starts, out=row)
    return np.ascontiguousarray(minima.T)


def _scramble(values: UInt[np.ndarray, " N"]) -> UInt[np.ndarray, " N"]:
    """A bijection on 32 bits whose every output bit depends on every input bit (MurmurHash3's finisher)."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    scrambled: UInt[np.ndarray, " N"] = values ^ (values >> np.uint32(16))
    return scrambled


def _sketch(minima: UInt[np.ndarray, "R F"]) -> UInt[np.ndarray, "R W"]:
    """One bit of each minimum: the lowest after scrambling, for a minimum's own bits are not evenly spread."""
    bits = _scramble(minima) & np.uint32(1)
    packed: UInt[np.ndarray, "R W"] = np.packbits(bits.astype(np.uint8), axis=1).view(np.uint64)
    return packed


def _bands(prompts: UInt[np.ndarray, "R F"], answers: UInt[np.ndarray, "R F"]) -> UInt[np.ndarray, "R B"]:
    """A hash of the values of each band."""
    used = _BANDS * _VALUES
    shape = (len(prompts), _BANDS, _VALUES)
    values = np.concatenate([part[:, :used].reshape(shape) for part in (prompts, answers)], axis=2)
    return _scramble((_scramble(values) * _BAND_FACTORS).sum(axis=2, dtype=np.uint32))
