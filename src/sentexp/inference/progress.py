"""How far a prediction is: a bar on a terminal, a line now and then in a log; rows per second and the time left."""

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from sentexp.inference.readers import Source

LINE_EVERY = 30.0
"""Seconds between two lines in a log."""


def tell(sentence: str) -> None:
    """Print a sentence beside standard output, which may hold the rows."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(sentence))


class Meter:
    """Counts rows, and tells of them while it is entered.

    The share that is done is that of what was read before the chunk at hand, and of the chunk what is scored.

    Args:
        source: the input; that of standard input has no end that is known.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rows = 0
        self._before = self._read = 0  # of the source, before the chunk at hand and after it
        self._chunk = self._scored = 0
        self._began = self._told = 0.0
        self._start: float | None = None
        columns = (TextColumn("Predicting"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("", total=source.size, told="")

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the first chunk."""
        return 0.0 if self._start is None else time.monotonic() - self._began

    def skip(self) -> None:
        """Count what was read so far as done earlier."""
        self._read = self.source.done

    def begin(self, rows: int) -> None:
        """Begin a chunk of so many rows."""
        if self._start is None:
            self._start = self._read
            self._began = self._told = time.monotonic()
        self._before, self._read, self._chunk, self._scored = self._read, self.source.done, rows, 0

    def advance(self, rows: int) -> None:
        """Count rows that are scored."""
        self.rows += rows
        self._scored += rows
        done = self._before + (self._read - self._before) * self._scored / max(self._chunk, 1)
        told = self._sentence(done)
        self._bar.update(self._task, completed=done, told=told)
        if self._bar.disable and time.monotonic() - self._told >= LINE_EVERY:
            self._told = time.monotonic()
            tell(told)

    def _sentence(self, done: float) -> str:
        seconds = max(self.seconds, 1e-9)
        told = f"{self.rows:,} rows, {self.rows / seconds:,.1f} rows/s"
        pace = (done - (self._start or 0)) / seconds
        if self.source.size is None or pace <= 0:
            return told
        return f"{told}, {timedelta(seconds=round((self.source.size - done) / pace))} left"
