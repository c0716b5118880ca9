"""How far a prediction is: a bar on a terminal, a line now and then in a log; rows per second and the time left."""

import sys
import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from sentexp.system.console import tell

LINE_EVERY = 30.0
"""Seconds between two lines in a log."""


class Meter:
    """Counts rows, and tells of them while it is entered.

    Args:
        total: rows of the input; None is not known.
        before: rows that an earlier start has scored.
    """

    def __init__(self, total: int | None, before: int) -> None:
        self.rows = 0
        self._left = None if total is None else total - before
        self._began = self._last_line = time.monotonic()
        columns = (TextColumn("Predicting"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("", total=total, completed=before)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the clock was started."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """Start the clock, once the model is there."""
        self._began = self._last_line = time.monotonic()

    def advance(self, rows: int) -> None:
        """Count rows that are scored."""
        self.rows += rows
        speed = self.rows / max(self.seconds, 1e-9)
        sentence = f"{self.rows:,} rows, {speed:,.1f} rows/s"
        if self._left is not None and speed > 0:
            sentence += f", {timedelta(seconds=round((self._left - self.rows) / speed))} left"
        self._bar.update(self._task, advance=rows, description=sentence)
        if self._bar.disable and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            tell(sentence)
