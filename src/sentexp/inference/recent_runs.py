"""The finished runs that there are, the latest first: those of the store, and those that only have a folder."""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.system.json_files import read_json
from sentexp.tracking.queries import finished_runs
from sentexp.tracking.run_dir import RESULT, STATE
from sentexp.tracking.store import Store

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

LISTED = 5
IDENTITY = re.compile("[0-9a-f]{16}")


@dataclass(kw_only=True, slots=True)
class Ended:
    """A finished run: when it ended, in seconds since 1970, and its MLflow run, or its folder where it has none."""

    identity: str
    name: str
    seconds: float
    run: "Run | None" = None
    folder: Path | None = None

    def __str__(self) -> str:
        """Return identity and name, as lists of runs show them."""
        return f"{self.identity} ({self.name})" if self.name else self.identity


def ended_runs(store: Store | None, output_dir: str) -> Iterator[Ended]:
    """Yield the finished runs of a store, and those in `output_dir` that were recorded nowhere, the latest first."""
    recorded = iter(()) if store is None else map(_recorded, finished_runs(store))
    return heapq.merge(recorded, _in_folders(Path(output_dir)), key=lambda one: -one.seconds)


def list_recent(store: Store | None, output_dir: str) -> str:
    """Return the latest finished runs by identity and name, as the end of a sentence; nothing where there are none."""
    names: dict[str, str] = {}
    for one in ended_runs(store, output_dir):
        names.setdefault(one.identity, str(one))
        if len(names) == LISTED:
            break
    return f"; the latest are {', '.join(islice(names.values(), LISTED))}" if names else ""


def identity_of(run: "Run") -> str:
    """Return the identity of a run, or its MLflow id where it has none."""
    return str(run.data.tags.get("identity", run.info.run_id))


def _recorded(run: "Run") -> Ended:
    ended = run.info.end_time or run.info.start_time
    return Ended(identity=identity_of(run), name=run.info.run_name, seconds=ended / 1000, run=run)


def _in_folders(output_dir: Path) -> list[Ended]:
    """Return the finished runs that only have a folder, the latest first."""
    found = []
    for file in output_dir.glob(f"*/{RESULT}"):
        folder = file.parent
        done = IDENTITY.fullmatch(folder.name) is not None and not (folder / STATE).is_file()
        if done and read_json(file)["run_id"] is None:
            found.append(Ended(identity=folder.name, name="", seconds=file.stat().st_mtime, folder=folder))
    return sorted(found, key=lambda one: -one.seconds)
