"""Runs in an SQLite store, read without MLflow, whose import takes longer than all else that looking at runs needs.

The tables are MLflow's own: a test holds what is read against what MLflow's client says.
"""

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True, slots=True, frozen=True)
class RunInfo:
    """What a run is, by the names of MLflow's entity; times are milliseconds since 1970."""

    run_id: str
    run_name: str
    status: str
    start_time: int
    end_time: int | None
    lifecycle_stage: str
    artifact_uri: str


@dataclass(kw_only=True, slots=True, frozen=True)
class RunData:
    """What is recorded of a run, by the names of MLflow's entity; of each metric the last value."""

    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """A recorded run, of the form of MLflow's entity."""

    info: RunInfo
    data: RunData


@dataclass(kw_only=True, slots=True, frozen=True)
class Wanted:
    """Which runs of an experiment are wanted: all that were not deleted, the one that was started last first.

    Attributes:
        status: that they have.
        tag: that they have, with `value`; with any but an empty one where that is None.
        value: of the tag.
        by_end: the one that ended last first.
    """

    status: str | None = None
    tag: str | None = None
    value: str | None = None
    by_end: bool = False

    def as_filter(self) -> str:
        """Return them as a filter of MLflow's client."""
        ended = [] if self.status is None else [f"attributes.status = '{self.status}'"]
        tagged = "!= ''" if self.value is None else f"= '{self.value}'"
        return " AND ".join([*ended, *([] if self.tag is None else [f"tags.`{self.tag}` {tagged}"])])

    def as_order(self) -> list[str] | None:
        """Return their order for MLflow's client."""
        return ["attributes.end_time DESC"] if self.by_end else None

    def as_sql(self) -> tuple[str, list[str]]:
        """Return them as what follows WHERE in SQL, with its parameters."""
        conditions, values = ["lifecycle_stage = 'active'"], []
        if self.status is not None:
            conditions, values = [*conditions, "status = ?"], [self.status]
        if self.tag is not None:
            tagged = "value != ''" if self.value is None else "value = ?"
            conditions.append(f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND {tagged})")
            values += [self.tag, *([] if self.value is None else [self.value])]
        order = "end_time" if self.by_end else "start_time"
        return f"{' AND '.join(conditions)} ORDER BY {order} DESC, run_uuid", values


class SqliteReader:
    """Reads runs from a file that MLflow has written.

    Raises:
        sqlite3.Error: by every method: the file is locked, or is not such a store.
    """

    def __init__(self, file: Path) -> None:
        self._address = f"{file.absolute().as_uri()}?mode=ro"

    def experiment(self, name: str) -> tuple[str, str] | None:
        """Return the id of an experiment, and `active` or `deleted`; None where there is none."""
        found = self._rows("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?", [name])
        if len(found) > 1:
            raise sqlite3.DataError(f"{len(found)} workspaces have an experiment {name}")
        return (str(found[0][0]), found[0][1]) if found else None

    def get_run(self, run_id: str) -> Run | None:
        """Return a run, deleted or not; None where there is none."""
        found = self._runs("run_uuid = ?", [run_id])
        return found[0] if found else None

    def walk(self, experiment: str, wanted: Wanted, page: int) -> Iterator[list[Run]]:
        """Yield runs of an experiment, so many at a time."""
        where, values = wanted.as_sql()
        start = 0
        while runs := self._runs(f"experiment_id = ? AND {where} LIMIT {page} OFFSET {start}", [experiment, *values]):
            yield runs
            start += page

    def _runs(self, where: str, values: Sequence[str]) -> list[Run]:
        columns = "run_uuid, name, status, start_time, end_time, lifecycle_stage, artifact_uri"
        infos = [
            RunInfo(**dict(zip(RunInfo.__slots__, row, strict=True)))
            for row in self._rows(f"SELECT {columns} FROM runs WHERE {where}", values)
        ]
        data = {info.run_id: RunData() for info in infos}
        within = f"run_uuid IN ({', '.join('?' * len(data))})"
        for name in ("tags", "params"):
            for run_id, key, value in self._rows(f"SELECT run_uuid, key, value FROM {name} WHERE {within}", [*data]):
                getattr(data[run_id], name)[key] = value
        query = f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE {within}"
        for run_id, key, value, is_nan in self._rows(query, [*data]):
            data[run_id].metrics[key] = math.nan if is_nan else value
        return [Run(info=info, data=data[info.run_id]) for info in infos]

    def _rows(self, query: str, values: Sequence[str]) -> list[Any]:
        with closing(sqlite3.connect(self._address, uri=True)) as database:
            return database.execute(query, values).fetchall()
