"""The folder of a run: locked while the run lasts, and what a later process needs to go on with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from sentexp.distributed import processes
from sentexp.errors import UserError

STATE, METRICS_FILE, LOCK = "state.json", "metrics.jsonl", ".lock"


def read_state(path: Path) -> dict[str, Any]:
    """Return what a process that did not end its run has left in the run's folder; nothing where all is done."""
    file = path / STATE
    return json.loads(file.read_text()) if file.is_file() else {}


class RunFolder:
    """`outputs/<identity>`: entered, it is this run's alone; of several processes the leading one writes.

    Args:
        path: of the folder.
        wait: for another process to leave it, instead of raising.

    Raises:
        UserError: on entering, when another process is at the same run.
    """

    def __init__(self, path: Path, wait: bool = False) -> None:
        self.path = path
        self.state: dict[str, Any] = {}
        self._lock = FileLock(path / LOCK, timeout=-1 if wait else 0)

    def __enter__(self) -> "RunFolder":
        self.state = processes.led(self._lock_and_read)
        return self

    def _lock_and_read(self) -> dict[str, Any]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout):
                raise self._in_progress() from None
            raise UserError(
                f"output_dir={self.path.parent} cannot be written ({error.strerror}): name a folder that can."
            ) from None
        state = read_state(self.path)
        if state:
            self._end_a_cut_line(self.path / METRICS_FILE)
        return state

    def _end_a_cut_line(self, metrics: Path) -> None:
        """Begin a new line after one that a kill or a full disk has cut."""
        if metrics.is_file() and metrics.read_text()[-1:] not in ("", "\n"):
            with metrics.open("a") as file:
                file.write("\n")

    def _in_progress(self) -> UserError:
        return UserError(
            f"The same run is in progress in another process (its folder is {self.path}): wait for it, or change "
            "the configuration, the seed for instance."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def remember(self, **facts: Any) -> None:
        """Add facts to the state, so that they outlive this process; the first begin a run, and its metrics anew."""
        begins = not self.state
        self.state |= facts
        if not processes.leads():
            return
        if begins:
            (self.path / METRICS_FILE).unlink(missing_ok=True)
        unfinished = self.path / f"{STATE}.partial"
        unfinished.write_text(json.dumps(self.state))
        unfinished.replace(self.path / STATE)

    def forget(self) -> None:
        """Drop the state: the run is over, and the same command starts anew."""
        self.state = {}
        if processes.leads():
            (self.path / STATE).unlink(missing_ok=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append metrics at an optimizer step."""
        if not processes.leads():
            return
        with (self.path / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return a metric as (step, value) pairs in order; a step that a resumed run repeated counts once."""
        file = self.path / METRICS_FILE
        points: dict[int, float] = {}
        for line in file.read_text().splitlines() if file.is_file() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a kill cut the line; the resumed run wrote it again
            if name in row:
                points[row["step"]] = row[name]
        return sorted(points.items())


def is_locked(folder: Path) -> bool:
    """Tell whether a process of this machine is at the run."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
