"""Batches that are filled up: few sizes, little filler, and rows as they were."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentexp.config import AnswerLoss
from sentexp.data.buckets import bucket, filler_lengths
from sentexp.data.packing import Packer

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=70)


@given(st.integers(1, 1 << 20))
def test_a_size_is_the_next_power_of_two_or_the_middle_before_it(count):
    size = bucket(count)
    assert count <= size < 1.5 * count + 1
    while size % 2 == 0:
        size //= 2
    assert size in (1, 3)


@given(LENGTHS, st.integers(0, 5))
def test_filled_batches_have_few_sizes_and_no_filler_is_much_longer_than_the_rows(lengths, added):
    filler = filler_lengths(lengths, added)
    rows, tokens = len(lengths) + len(filler), sum(lengths) + sum(filler) + added * len(filler)
    assert (rows, tokens) == (bucket(rows), bucket(tokens))
    assert min(filler) >= 1
    assert max(filler) <= max(lengths) + added + 2


def test_a_sixth_of_what_is_computed_is_filler():
    computed = [bucket(count) for count in range(64, 4096)]
    assert 1 - sum(range(64, 4096)) / sum(computed) < 0.2


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("loss", list(AnswerLoss))
@pytest.mark.parametrize("answers", [[], [[7], [8]], [[7], [8, 9, 4]]], ids=["head", "tokens", "words"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_a_filled_layout_has_the_size(answers, loss, learns, prefix):
    packer = Packer(answers=answers, end=[3] if answers else [], loss=loss)
    rows, labels = [[1, 2, 5], [1, 2, 6, 6, 6], [1, 2, 5, 5]], [0, 1, 1]
    filler = packer.filler(rows, labels if learns else None, prefix)
    assert all(row[:prefix] == [1, 2][:prefix] for row in filler)
    everything, classes = [*rows, *filler], [*labels, *[0] * len(filler)]
    packed = packer.train(everything, classes, prefix) if learns else packer.score(everything, prefix)
    assert packed.rows == bucket(packed.rows) == len(everything)
    assert len(packed.ids) - prefix == bucket(len(packed.ids) - prefix)
    plain = packer.train(rows, labels, prefix) if learns else packer.score(rows, prefix)
    assert packed.ids[: len(plain.ids)].tolist() == plain.ids.tolist()
    if plain.learned is not None:
        learned = Counter(row for row in packed.learned.rows.tolist() if row < len(rows))
        assert learned == Counter(plain.learned.rows.tolist())
