"""SIGINT and SIGTERM: none is lost, and both wait for the end of what must not be cut in half."""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

PAUSE = 0.01
"""Seconds until a signal comes again whose exception was lost."""

Handler = Callable[[int, FrameType | None], None]

_RAISED: dict[type[BaseException], tuple[int, Handler | None]] = {KeyboardInterrupt: (signal.SIGINT, None)}
"""By exception: the signal that raises it, and the handler that is put back before the signal comes again."""


def raise_on_signal(number: int, error: type[BaseException], once: bool = False) -> None:
    """Raise an exception in the main thread when a signal comes; do not lose this one or SIGINT in a destructor.

    Python raises nothing out of a destructor or the callback of a weak reference: it prints the exception and
    continues, as if there had been no signal. Here nothing is printed, and the signal comes again a moment later.

    Args:
        number: of the signal.
        error: what is raised, for this signal alone.
        once: ignore the signal from then on, while the exception unwinds the program.
    """

    def handler(number: int, _: FrameType | None) -> None:
        if once:
            signal.signal(number, signal.SIG_IGN)
        raise error

    _RAISED[error] = number, handler if once else None
    signal.signal(number, handler)
    if not isinstance(sys.unraisablehook, _Repeat):
        sys.unraisablehook = _Repeat(sys.unraisablehook)


class _Repeat:
    """Sends the signal again whose exception Python drops; leaves other exceptions to the hook before it."""

    def __init__(self, previous: Callable[["sys.UnraisableHookArgs"], Any]) -> None:
        self._previous = previous

    def __call__(self, dropped: "sys.UnraisableHookArgs") -> None:
        if dropped.exc_type not in _RAISED:
            self._previous(dropped)
            return
        number, handler = _RAISED[dropped.exc_type]
        if handler is not None:
            signal.signal(number, handler)
        # To start, a thread of `threading` needs a lock that the program may hold just here.
        with suppress(RuntimeError):  # Python is ending
            _thread.start_new_thread(_send_soon, (number,))


def _send_soon(number: int) -> None:
    time.sleep(PAUSE)
    os.kill(os.getpid(), number)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Let a first SIGINT or SIGTERM wait until the end, where they are nested the outer one; a second does not wait."""
    handler = _Waiting()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            # one that is not Python's is None, and could not be put back
            if previous is not None and not isinstance(previous, _Waiting):
                handler.before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        handler.put_back()
        for late in handler.noted:
            signal.raise_signal(late)


class _Waiting:
    """Notes a first signal; at a second one it puts back the handlers that were there, and lets this one through."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.noted: list[int] = []

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.noted.append(number)
        if len(self.noted) > 1:
            self.put_back()
            signal.raise_signal(self.noted.pop())

    def put_back(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())
