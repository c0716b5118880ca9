"""Cutting a sweep into groups, and how long they take together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentexp.sweeps.schedule import cut, length_of, simulate

LENGTHS = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


def alike(*sizes):
    """Return families of runs that all take as long."""
    families, first = [], 0
    for size in sizes:
        families.append(list(range(first, first + size)))
        first += size
    return families, dict.fromkeys(range(first), 1.0)


@given(LENGTHS, st.integers(1, 12), st.integers(1, 9), st.data())
def test_each_run_is_in_one_group_with_others_of_its_family(lengths, workers, most, data):
    family_of = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    families = [[run for run, family in enumerate(family_of) if family == n] for n in sorted(set(family_of))]
    groups = cut(families, dict(enumerate(lengths)), workers, most)
    assert sorted(run for group in groups for run in group.runs) == list(range(len(lengths)))
    for group in groups:
        assert len({family_of[run] for run in group.runs}) == 1
        assert len(group.runs) <= most
        assert group.together is (len(group.runs) > 1)
        assert group.length == pytest.approx(length_of([lengths[run] for run in group.runs]))
    assert [group.length for group in groups] == sorted((group.length for group in groups), reverse=True)


@pytest.mark.parametrize(
    ("sizes", "workers", "expected"),
    [
        ((16,), 1, [16]),
        ((16,), 4, [4, 4, 4, 4]),
        ((16,), 3, [6, 5, 5]),
        ((3,), 8, [1, 1, 1]),
        ((64,), 4, [16, 16, 16, 16]),
        ((100,), 4, [13, 13, 13, 13, 12, 12, 12, 12]),
        ((8, 8), 2, [8, 8]),
        ((12, 4), 2, [4, 4, 4, 4]),
        ((1, 1, 1), 2, [1, 1, 1]),
    ],
)
def test_runs_that_last_alike_are_cut_evenly(sizes, workers, expected):
    families, lengths = alike(*sizes)
    found = sorted((len(group.runs) for group in cut(families, lengths, workers, 16)), reverse=True)
    assert found == expected


def test_runs_of_like_length_are_together_and_the_longest_begin():
    lengths = {0: 1.0, 1: 10.0, 2: 1.0, 3: 10.0}
    groups = cut([[0, 1, 2, 3]], lengths, 1, 2)
    assert [group.runs for group in groups] == [(1, 3), (0, 2)]


def test_a_worker_that_is_free_takes_the_next():
    assert simulate([3, 2, 2, 1], 2) == 4
    assert simulate([3, 2, 2, 1], 9) == 3
    assert simulate([1, 2, 4], 1) == 7


def test_runs_without_a_length_are_cut_too():
    groups = cut([[0, 1, 2]], dict.fromkeys(range(3), 0.0), 2, 16)
    assert sorted(run for group in groups for run in group.runs) == [0, 1, 2]
