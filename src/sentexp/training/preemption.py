"""A job that is about to be ended from outside: its runs save their state after the step that they are at, and stop."""

import threading


class Preempted(BaseException):
    """The run has saved its state, and ends for the sake of its job."""


_asked = threading.Event()


def ask_runs_to_stop() -> None:
    """Let the runs of this process save their state, and stop; may be called by a handler of a signal."""
    _asked.set()


def is_asked_to_stop() -> bool:
    """Tell whether the runs of this process are to stop."""
    return _asked.is_set()


def forget() -> None:
    """Let runs train again."""
    _asked.clear()
