"""What must not be interrupted half-way: a transaction, which would leave the store locked by this very process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a first SIGINT or SIGTERM wait until the end; a second one is not kept waiting."""
    before: dict[int, Any] = {}
    waiting: list[int] = []

    def put_back() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(number: int, _: FrameType | None) -> None:
        waiting.append(number)
        if len(waiting) > 1:
            put_back()
            signal.raise_signal(waiting.pop())

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # else it is not Python's, and could not be put back
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        put_back()
        for late in waiting:
            signal.raise_signal(late)
