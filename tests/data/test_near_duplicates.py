"""Near-duplicates: what is told is true, little is missed, and alike texts cost no square."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sentexp.data.near_duplicates import NEAR, near_pairs
from sentexp.data.text_hash import normalise


def brute_force(texts):
    words = [set(normalise(text).split()) for text in texts]
    return {
        (a, b)
        for a in range(len(texts))
        for b in range(a + 1, len(texts))
        if min(len(words[a]), len(words[b])) >= 4 and len(words[a] & words[b]) / len(words[a] | words[b]) >= NEAR
    }


@given(st.lists(st.sets(st.sampled_from("abcdefghijklmno"), min_size=1, max_size=12), min_size=2, max_size=25))
@settings(max_examples=60)
def test_what_is_called_near_is_near(sets):
    texts = list(dict.fromkeys(" ".join(sorted(words)) for words in sets))
    left, right = near_pairs(pa.chunked_array([pa.array(texts, pa.large_string())]))
    found = set(zip(left.tolist(), right.tolist(), strict=True))
    assert found <= brute_force(texts)


def test_near_duplicates_are_found_with_high_probability():
    random = np.random.default_rng(0)
    vocabulary = [f"word{index}" for index in range(5000)]
    originals = [" ".join(random.choice(vocabulary, 20, replace=False)) for _ in range(500)]
    copies = [text.replace(text.split()[3], "changed") for text in originals]  # Jaccard 19/21 = 0.905
    left, right = near_pairs(pa.chunked_array([pa.array(originals + copies, pa.large_string())]))
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    assert sum((index, index + 500) in pairs for index in range(500)) >= 498
    assert all(b - a == 500 for a, b in pairs)


def test_a_large_family_of_alike_texts_costs_no_square():
    texts = [
        " ".join(["thank", "you", "for", "your", "kind", "review", "of", "our", "house", f"number{i}"])
        for i in range(3000)
    ]
    left, right = near_pairs(pa.chunked_array([pa.array(texts, pa.large_string())]))
    assert set(left.tolist()) | set(right.tolist()) == set(range(3000))
    assert len(left) < 16 * 3000
