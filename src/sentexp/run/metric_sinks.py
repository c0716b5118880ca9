"""Where the metrics of a training go while it lasts: the folder of the run, and MLflow."""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from sentexp.errors import UserError
from sentexp.system.console import say
from sentexp.system.stopwatch import TIMES
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import Measurement, RunLogger

SECONDS_BETWEEN_WRITES = 1.0
"""To MLflow, whose transactions take as long as a training step or longer."""


class MetricSinks:
    """Sends the metrics of a training to the run's folder at once, and to MLflow about once a second.

    A resumed run does not measure again what comes before its checkpoint, so `flush` must precede each checkpoint, and
    the metrics that follow it are sent at once: Lightning logs a step after its callbacks have saved it. The end of the
    context sends the rest.
    """

    def __init__(self, logger: RunLogger, run_dir: RunDir) -> None:
        self.logger = logger
        self.run_dir = run_dir
        self._waiting: list[Measurement] = []
        self._send_at = time.monotonic() + SECONDS_BETWEEN_WRITES

    def __enter__(self) -> Self:
        """Collect metrics."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Send what waits; a training that failed ends with its own error."""
        try:
            self.flush()
        except (UserError, OSError):
            if error is None:
                raise
            say("The last metrics could not be recorded in MLflow.")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at an optimizer step."""
        self.run_dir.log_metrics(metrics, step)
        self._waiting.append(Measurement(metrics, step))
        if time.monotonic() >= self._send_at:
            self.flush()
            self._send_at = time.monotonic() + SECONDS_BETWEEN_WRITES

    def flush(self) -> None:
        """Send what waits to MLflow."""
        waiting, self._waiting = self._waiting, []
        with TIMES.part("records"):
            self.logger.log_measurements(waiting)
        self._send_at = -math.inf
