"""A transaction ends before an interrupt does, and leaves the store free; no interrupt is lost in a destructor."""

import os
import signal
import sys
import threading
import time
import weakref

import pytest

from sentexp.config import TrackingBackend, TrackingConfig, from_conf
from sentexp.system.signals import defer_signals, raise_on_signal
from sentexp.tracking.run_logger import open_run_logger


class Ended(BaseException):
    """SIGTERM."""


@pytest.fixture
def handlers():
    """Python's own handler of SIGINT, and one of SIGTERM; afterwards those that were there."""

    def end(*_):
        raise Ended

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, end)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended)])
def test_a_first_signal_waits(handlers, number, raised):
    known = signal.getsignal(number)
    done = []
    with pytest.raises(raised), defer_signals():
        signal.raise_signal(number)
        done.append("to the end")
    assert done == ["to the end"]
    assert signal.getsignal(number) is known


def test_a_second_signal_does_not_wait(handlers):
    done = []
    with pytest.raises(KeyboardInterrupt), defer_signals():
        signal.raise_signal(signal.SIGINT)
        done.append("after the first")
        signal.raise_signal(signal.SIGINT)
        done.append("after the second")
    assert done == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_within_another_a_first_signal_waits_for_the_outer_end_and_a_second_for_none(handlers):
    done = []
    with pytest.raises(KeyboardInterrupt), defer_signals():
        with defer_signals():
            signal.raise_signal(signal.SIGINT)
            done.append("the inner end")
        done.append("the outer end")
    assert done == ["the inner end", "the outer end"]
    with pytest.raises(KeyboardInterrupt), defer_signals(), defer_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("after the second")
    assert "after the second" not in done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Watched:
    """An object that a weak reference can point to."""


def _lose(number):
    """Get a signal in the callback of a weak reference, out of which nothing is raised."""
    watched = Watched()
    reference = weakref.ref(watched, lambda _: os.kill(os.getpid(), number))
    del watched
    assert reference() is None


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended)])
def test_a_signal_whose_exception_python_drops_comes_again(handlers, number, raised, once, monkeypatch, capsys):
    others = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    raise_on_signal(signal.SIGTERM, Ended, once=once)
    with pytest.raises(raised):
        _lose(number)
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN or not (once and raised is Ended)
    assert (others, capsys.readouterr().err) == ([], "")


def test_other_exceptions_that_python_drops_are_shown_as_before(handlers, monkeypatch):
    others = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    raise_on_signal(signal.SIGTERM, Ended)
    raise_on_signal(signal.SIGTERM, Ended)
    watched = Watched()
    reference = weakref.ref(watched, lambda _: 1 / 0)
    del watched
    assert reference() is None
    assert [dropped.exc_type for dropped in others] == [ZeroDivisionError]


def test_without_a_signal_nothing_is_left(handlers):
    known = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with defer_signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == known


def test_other_threads_do_without(handlers):
    found = []

    def work():
        with defer_signals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_an_interrupted_write_is_whole_and_the_store_is_free(handlers, tmp_path):
    """The interrupt comes when metrics are written and not yet committed, with the lock in hand."""
    from sqlalchemy import Engine, event

    tracking = from_conf(
        TrackingConfig, backend=TrackingBackend.mlflow, uri=f"sqlite:///{tmp_path / 'mlflow.db'}", system_metrics=False
    )
    record = open_run_logger(tracking, "a run")
    interrupts = [signal.SIGINT]

    def interrupt(_, __, statement, *___):
        if interrupts and statement.startswith("INSERT INTO metrics"):
            signal.raise_signal(interrupts.pop())

    event.listen(Engine, "after_cursor_execute", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as kept:
            record.log_metrics({"loss": 1.0}, 1)
        assert not interrupts
        record.finish("KILLED")  # while the exception, and with it every frame, is still held
        assert kept.value is not None
    finally:
        event.remove(Engine, "after_cursor_execute", interrupt)
    run = record.store.client.get_run(record.run_id)
    assert run.data.metrics == {"loss": 1.0}
    assert run.info.status == "KILLED"
