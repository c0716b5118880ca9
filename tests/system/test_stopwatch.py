"""The table of where the time went: its parts are exclusive, and their sum is the whole."""

import time

import psutil
import pytest

from sentexp.system import stopwatch
from sentexp.system.stopwatch import OTHER, START, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still until it is moved."""
    now = {"now": stopwatch._IMPORTED[1]}
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now["now"])
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: stopwatch._IMPORTED[0] - 3.0)

    def move(seconds):
        now["now"] += seconds

    return move


def test_a_part_within_another_interrupts_it(clock):
    watch = Stopwatch()
    clock(1)
    with watch.part("training"):
        clock(10)
        with watch.part("validation"):
            clock(5)
        clock(20)
    clock(0.5)
    with watch.part("validation"):
        clock(2)
    assert watch.seconds() == pytest.approx({START: 4, "training": 30, "validation": 7, OTHER: 0.5})


def test_a_part_ends_with_an_error(clock):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.part("outer"), watch.part("inner"):
        clock(1)
        raise KeyError
    clock(2)
    assert watch.seconds() == pytest.approx({START: 3, "inner": 1, "outer": 0, OTHER: 2})


def test_the_parts_are_the_whole_life_of_the_process():
    before = time.time() - psutil.Process().create_time()
    total = sum(Stopwatch().seconds().values())
    after = time.time() - psutil.Process().create_time()
    assert before - 1 < total < after + 1
