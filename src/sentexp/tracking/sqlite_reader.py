"""Runs in an SQLite store, read without MLflow, whose import takes longer than all else that looking at runs needs.

The tables are MLflow's own: a test holds what is read against what MLflow's client says.
"""

import math
import re
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
        name: that they have.
        id_begins: the beginning of their ids.
        ids: that they have one of.
        tag: that they have, with `value`, or one that begins with `value_begins`; with any but an empty one else.
        value: of the tag.
        value_begins: its beginning.
        by_end: the one that ended last first.
        oldest_first: the one that was started first.
    """

    status: str | None = None
    name: str | None = None
    id_begins: str | None = None
    ids: tuple[str, ...] | None = None
    tag: str | None = None
    value: str | None = None
    value_begins: str | None = None
    by_end: bool = False
    oldest_first: bool = False

    def as_filter(self) -> str:
        """Return them as a filter of MLflow's client, which finds some more of a name or a beginning."""
        parts = []
        if self.status is not None:
            parts.append(f"attributes.status = '{self.status}'")
        if self.name is not None:
            parts.append(f"attributes.run_name LIKE '{_pattern(self.name)}'")
        if self.id_begins is not None:
            parts.append(f"attributes.run_id LIKE '{_pattern(self.id_begins)}%'")
        if self.ids is not None:
            parts.append(f"attributes.run_id IN ({', '.join(map(repr, self.ids))})")
        if self.tag is not None:
            tagged = "!= ''" if self.value is None else f"= '{self.value}'"
            tagged = tagged if self.value_begins is None else f"LIKE '{_pattern(self.value_begins)}%'"
            parts.append(f"tags.`{self.tag}` {tagged}")
        return " AND ".join(parts)

    def as_order(self) -> list[str] | None:
        """Return their order for MLflow's client."""
        if self.oldest_first:
            return ["attributes.start_time ASC"]
        return ["attributes.end_time DESC"] if self.by_end else None

    def as_sql(self) -> tuple[str, list[str]]:
        """Return them as what follows WHERE in SQL, with its parameters."""
        tagged = "value != ''" if self.value is None else "value = ?"
        tagged = tagged if self.value_begins is None else "instr(value, ?) = 1"
        ids = self.ids or ()
        conditions: dict[str, list[str | None]] = {
            "status = ?": [self.status],
            "name = ?": [self.name],
            "instr(run_uuid, ?) = 1": [self.id_begins],
            f"run_uuid IN ({', '.join('?' * len(ids))})": [*ids] if self.ids is not None else [None],
            f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND {tagged})": [
                self.tag,
                *(one for one in (self.value, self.value_begins) if one is not None),
            ],
        }
        given = {condition: values for condition, values in conditions.items() if None not in values}
        where = " AND ".join(["lifecycle_stage = 'active'", *given])
        order = f"{'end_time' if self.by_end else 'start_time'} {'ASC' if self.oldest_first else 'DESC'}"
        return f"{where} ORDER BY {order}, run_uuid", [str(one) for values in given.values() for one in values]


def _pattern(text: str) -> str:
    """Return a pattern of SQL for a text, any letter in place of those that would end the text or the filter."""
    return re.sub(r"[^\w .=,:+-]|_", "_", text)


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
        """Yield runs of an experiment, so many at a time; those that are deleted in between are left out."""
        where, values = wanted.as_sql()
        found = self._rows(f"SELECT run_uuid FROM runs WHERE experiment_id = ? AND {where}", [experiment, *values])
        run_ids = [row[0] for row in found]
        for start in range(0, len(run_ids), page):
            ids = run_ids[start : start + page]
            runs = {run.info.run_id: run for run in self._runs(f"run_uuid IN ({', '.join('?' * len(ids))})", ids)}
            yield [runs[run_id] for run_id in ids if run_id in runs]

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
