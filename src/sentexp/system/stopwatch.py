"""Where the time of this process goes, by parts of which one lasts at a time: together they are the whole."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

START, OTHER = "start and imports", "other"
_IMPORTED = time.time(), time.monotonic()


class Stopwatch:
    """Adds up seconds by part. A part that begins within another one interrupts it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._part = START
        self._since = _IMPORTED[1]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what follows as this part."""
        before = self.turn_to(name)
        try:
            yield
        finally:
            self.turn_to(OTHER if before == START else before)

    def turn_to(self, name: str) -> str:
        """Begin a part, and return the one that it interrupts."""
        before, now = self._part, time.monotonic()
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._part, self._since = name, now
        return before

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part so far, from the beginning of the process, in the order of their begin."""
        import psutil

        self.turn_to(self._part)
        before_import = _IMPORTED[0] - psutil.Process().create_time()
        return self._seconds | {START: self._seconds[START] + max(before_import, 0.0)}


TIMES = Stopwatch()
"""Of this process."""


def print_times() -> None:
    """Print how long each part took, and its share."""
    from rich.table import Column, Table

    from sentexp.system.console import OUT

    seconds = TIMES.seconds()
    total = sum(seconds.values())
    table = Table("part", Column("seconds", justify="right"), Column("share", justify="right"), title="time")
    table.title_justify = "left"
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{value / total:.1%}")
    table.add_section()
    table.add_row("sum", f"{total:.1f}", "")
    OUT.print(table)
