"""How far a prediction is, in a log: rows per second and the time left."""

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
    with Meter(100, before=20) as meter:  # an earlier start has done a fifth
        clock.seconds += 50  # the model is loaded
        meter.begin()
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
    with Meter(None, before=0) as meter:
        clock.seconds += 40
        meter.advance(4)
    assert capsys.readouterr().err == "4 rows, 0.1 rows/s\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Meter(100, before=0) as meter:
        meter.advance(50)
    assert "50%" in capsys.readouterr().err
