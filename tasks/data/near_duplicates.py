"""Texts that are nearly the same, found by MinHash: numpy alone.

A text is the set of its shingles, runs of SHINGLE_WORDS words. The smallest value that a random hash function takes on a set agrees
for two sets with a probability equal to their Jaccard similarity (Broder 1997, "On the resemblance and containment of documents").
HASHES such values make a signature; signatures are cut into bands, and texts that agree in a whole band are compared, shingle by
shingle. With 32 bands of 4 a pair of similarity 0.7 is compared with probability 0.9998, one of 0.3 with 0.23: what is
reported was compared exactly.
"""

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 3
BANDS, ROWS = 32, 4
HASHES = BANDS * ROWS
_SEED = 1997


def normalized(text: str) -> str:
    """Words alone: compatibility forms, case, punctuation and white space do not count."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def shingles(normal: str) -> frozenset[int]:
    """The 32-bit hashes of a normalised text's runs of SHINGLE_WORDS words; of a shorter text, of the whole."""
    words = normal.split()
    runs = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(
        zlib.crc32(" ".join(words[first : first + SHINGLE_WORDS]).encode()) for first in range(runs)
    )


def similarity(left: frozenset[int], right: frozenset[int]) -> float:
    """Jaccard similarity of two sets of shingles."""
    return len(left & right) / len(left | right)


class NearDuplicates:
    """An index of texts that answers which of them another text nearly repeats."""

    def __init__(self, normal_texts: Sequence[str], least_similarity: float) -> None:
        """Index normalised texts.

        Args:
            normal_texts: see `normalized`.
            least_similarity: of a near-duplicate, Jaccard over shingles.
        """
        random = np.random.default_rng(_SEED)
        self._odd, self._shift = random.integers(1, 2**63, (2, HASHES, 1), dtype=np.uint64) | np.uint64(1)
        self._least = least_similarity
        self._sets = [shingles(text) for text in normal_texts]
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        for index, found in enumerate(self._sets):
            for band in self._bands(found):
                self._buckets[band].append(index)

    def find(self, normal_text: str) -> tuple[int, float] | None:
        """The index of the indexed text most similar to this one, and the similarity; None where none is similar enough."""
        own = shingles(normal_text)
        close = {index for band in self._bands(own) for index in self._buckets.get(band, ())}
        best = max(((similarity(own, self._sets[index]), -index) for index in close), default=(0.0, 0))
        return (-best[1], best[0]) if best[0] >= self._least else None

    def _bands(self, found: frozenset[int]) -> Iterator[tuple[int, bytes]]:
        signature = self._signature(found).reshape(BANDS, ROWS)
        return ((band, values.tobytes()) for band, values in enumerate(signature))

    def _signature(self, found: frozenset[int]) -> NDArray[np.uint64]:
        """The least value of each hash function (multiply-shift; Dietzfelbinger et al. 1997)."""
        values = np.fromiter(found, np.uint64, len(found))
        least: NDArray[np.uint64] = ((self._odd * values + self._shift) >> np.uint64(32)).min(axis=1)
        return least
