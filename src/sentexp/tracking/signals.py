"""What must not be interrupted half-way: a transaction, which would leave the store locked by this very process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


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
