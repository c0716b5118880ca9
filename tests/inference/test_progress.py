"""How far a prediction is, in a log: rows per second and the time left, by what was read."""

from types import SimpleNamespace

import pytest

from sentexp.inference import progress
from sentexp.inference.progress import Meter


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    source = SimpleNamespace(size=1000, done=200)
    meter = Meter(source)
    with meter:
        meter.skip()  # an earlier start has done a fifth
        source.done = 600
        meter.begin(40)
        clock.seconds += 10
        meter.advance(10)
        clock.seconds += 30
        meter.advance(10)
        clock.seconds += 1
        meter.advance(20)
    assert capsys.readouterr().err == "20 rows, 0.5 rows/s, 0:02:00 left\n"
    assert meter.rows == 40
    assert meter.seconds == 41


def test_without_an_end_that_is_known_no_time_is_left(clock, capsys):
    meter = Meter(SimpleNamespace(size=None, done=0))
    with meter:
        meter.begin(4)
        clock.seconds += 40
        meter.advance(4)
    assert capsys.readouterr().err == "4 rows, 0.1 rows/s\n"
