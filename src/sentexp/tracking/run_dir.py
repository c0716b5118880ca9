"""The folder of a run: locked while the run lasts, and what a later process needs to resume it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from sentexp.distributed import processes
from sentexp.errors import UserError
from sentexp.system.atomic_write import write_atomic
from sentexp.system.json_files import read_json

STATE, METRICS_FILE, LOCK, RESULT = "state.json", "metrics.jsonl", ".lock", "result.json"


def read_state(path: Path) -> dict[str, Any]:
    """Return what a process that did not end its run has left in the run's folder; nothing where all is done."""
    file = path / STATE
    return read_json(file) if file.is_file() else {}


class RunDir:
    """`outputs/<identity>`: entered, it is this run's alone; of several processes the main one writes.

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

    def __enter__(self) -> "RunDir":
        self.state = self._lock_and_read()
        return self

    @processes.main_process_only
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

    def save_state(self, **facts: Any) -> None:
        """Add facts to the state, so that they outlive this process; the first begin a run, and its metrics anew."""
        if not self.state:
            self._drop(METRICS_FILE)
        self.state |= facts
        self._write_state()

    def clear_state(self) -> None:
        """Drop the state: the run is over, and the same command starts anew."""
        self.state = {}
        self._drop(STATE)

    @processes.main_process_writes
    def _write_state(self) -> None:
        write_atomic(self.path / STATE, json.dumps(self.state))

    @processes.main_process_writes
    def _drop(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    @processes.main_process_writes
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append metrics at an optimizer step."""
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
