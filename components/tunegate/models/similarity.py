"""How alike two texts are: the Jaccard similarity of their distinctive shingles, and a fast way to find pairs.

Shingles that a tenth of the rows share are set aside: they are instructions and templates, not what a row is about. A
row that has no others is compared by everything it says, its system message included.

Broder, "On the resemblance and containment of documents" (1997); the index is datasketch's MinHash-LSH. It only
proposes pairs: each is decided by the exact similarity, so no row is dropped for an estimate.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shingles = frozenset[int]

#: Characters in a shingle: long enough to be rare, short enough for texts of one sentence.
SHINGLE_CHARACTERS = 5

#: A shingle in more rows than this share of all (and than the number below) is a template's, not a row's.
COMMON_SHARE = 0.1
COMMON_ROWS = 10

_PERMUTATIONS = 128
_SEED = 1

#: The index errs towards proposing (weights of false positives and false negatives).
_WEIGHTS = (0.1, 0.9)


def normalised(text: str) -> str:
    """``text`` in Unicode's composed form with every run of white space as one space: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Comparable:
    """What is compared of a row: what it says itself, and the same with its system message."""

    text: str
    whole: str


def same_text(one: Comparable, other: Comparable) -> bool:
    """Whether both say the same themselves, whatever case and white space."""
    return " ".join(one.text.casefold().split()) == " ".join(other.text.casefold().split())


def shingles(text: str) -> Shingles:
    """The checksums of every run of five characters, whatever case and white space."""
    plain = normalised(text).casefold().encode("utf-8", "replace").decode()
    last = max(len(plain) - SHINGLE_CHARACTERS, 0)
    return frozenset(zlib.crc32(plain[i : i + SHINGLE_CHARACTERS].encode()) for i in range(last + 1))


def distinctive(rows: Sequence[Comparable]) -> list[Shingles]:
    """For each row the shingles by which it is compared."""
    own, whole = [shingles(row.text) for row in rows], [shingles(row.whole) for row in rows]
    common_own, common_whole = _common(own), _common(whole)
    return [(a - common_own) or (b - common_whole) or b for a, b in zip(own, whole, strict=True)]


def _common(rows: Sequence[Shingles]) -> Shingles:
    most = max(COMMON_ROWS, COMMON_SHARE * len(rows))
    counts = Counter(shingle for row in rows for shingle in row)
    return frozenset(shingle for shingle, count in counts.items() if count > most)


def jaccard(one: Shingles, other: Shingles) -> float:
    """The share of shingles in common; 1 for equal sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


class Index:
    """Finds, among the sets added so far, the one most similar to another."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._sets: dict[int, Shingles] = {}
        # At 1.0 the index could only propose equal sets of hashes; a little less costs nothing.
        self._index: Any = MinHashLSH(threshold=min(threshold, 0.99), num_perm=_PERMUTATIONS, weights=_WEIGHTS)

    def add(self, key: int, row: Shingles) -> None:
        """Adds a set under a key that was not used before."""
        self._sets[key] = row
        self._index.insert(key, _minhash(row))

    def nearest(self, row: Shingles) -> tuple[int, float] | None:
        """The key and similarity of the most similar set, if it reaches the threshold; the lowest key of equals."""
        found = [(jaccard(row, self._sets[key]), -key) for key in self._index.query(_minhash(row))]
        best, key = max(found, default=(0.0, 0))
        return (-key, best) if found and best >= self._threshold else None


def _minhash(row: Shingles) -> Any:
    from datasketch import MinHash

    minhash = MinHash(num_perm=_PERMUTATIONS, seed=_SEED, hashfunc=int)
    minhash.update_batch(sorted(row))
    return minhash
