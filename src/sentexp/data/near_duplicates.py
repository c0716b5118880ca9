"""Near-duplicates: pairs of texts whose sets of words are alike, found without comparing all with all.

MinHash (Broder 1997) with locality-sensitive hashing finds the candidates; their similarity is then computed.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from sentexp.data.text_hash import Numbers, fold

if TYPE_CHECKING:
    import pyarrow as pa

NEAR = 0.8
FEWEST_WORDS = 4
PERMUTATIONS, BANDS = 48, 12
MARGIN = 0.23  # four standard errors of a similarity of 0.8 that is estimated from 48 permutations
BLOCK = 10_000
WORDS = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")  # scripts without spaces: characters


def near_pairs(texts: "pa.ChunkedArray") -> tuple[Numbers, Numbers]:
    """Return pairs of rows whose sets of words have a Jaccard similarity of at least `NEAR`, as two index arrays.

    A pair is a candidate when one of `BANDS` bands of its MinHash signatures agrees and the two are neighbours among
    the rows that share it; so a family of n alike texts costs n comparisons, not n squared, and each member of it is
    found beside some other. Of pairs at the threshold, 1 - (1 - 0.8^4)^12 = 99.8 per cent share a band.

    Args:
        texts: distinct texts; those of fewer than `FEWEST_WORDS` words have no near-duplicates.
    """
    from rensa import RMinHash

    signatures = np.empty((len(texts), PERMUTATIONS), np.uint32)
    enough = np.zeros(len(texts), bool)
    for start in range(0, len(texts), BLOCK):
        words = [_words(text) for text in texts.slice(start, BLOCK).to_pylist()]
        matrix = RMinHash.digest_matrix_from_token_sets(words, num_perm=PERMUTATIONS, seed=0)
        signatures[start : start + len(words)] = matrix.to_rows()
        enough[start : start + len(words)] = [len(found) >= FEWEST_WORDS for found in words]
    return _verified(texts, *_candidates(signatures, np.flatnonzero(enough)))


def _words(text: str) -> set[str]:
    return set(WORDS.findall(fold(text)))


def _candidates(signatures: Numbers, rows: Numbers) -> tuple[Numbers, Numbers]:
    """Return pairs of rows that are neighbours among those which agree in a band, each pair once."""
    width = PERMUTATIONS // BANDS
    pairs_of_bands = [np.zeros((2, 0), np.int64)]
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[rows, band * width : (band + 1) * width])
        values = part.view(np.dtype((np.void, part.dtype.itemsize * width))).reshape(-1)
        order = np.argsort(values, kind="stable")
        alike = values[order][1:] == values[order][:-1]
        pairs = np.stack([rows[order[:-1][alike]], rows[order[1:][alike]]])
        agreeing = (signatures[pairs[0]] == signatures[pairs[1]]).mean(1) > NEAR - MARGIN
        pairs_of_bands.append(np.sort(pairs[:, agreeing], axis=0))
    pairs = np.unique(np.concatenate(pairs_of_bands, axis=1), axis=1)
    return pairs[0], pairs[1]


def _verified(texts: "pa.ChunkedArray", left: Numbers, right: Numbers) -> tuple[Numbers, Numbers]:
    """Return the pairs whose similarity, computed, reaches the threshold."""
    import pyarrow as pa

    wanted = np.unique(np.concatenate([left, right]))
    words = [_words(text) for text in texts.take(pa.array(wanted, pa.int64())).to_pylist()]
    places = zip(np.searchsorted(wanted, left).tolist(), np.searchsorted(wanted, right).tolist(), strict=True)
    similar = np.array([_jaccard(words[a], words[b]) >= NEAR for a, b in places], bool)
    return left[similar], right[similar]


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)
