"""Rows as they were read, and in the forms that are written.

A chunk of rows is an Arrow table where the input is CSV, TSV or Parquet, and a list of objects where it is JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sentexp.data.json_rows import Rows
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True, slots=True)
class Chunk:
    """Rows that follow each other: all that the input says of them, and their texts, null where there is none."""

    rows: "pa.Table | Rows"
    texts: list[str | None]

    def after(self, first: int) -> "Chunk":
        """Return the rows behind the first so many."""
        rows = self.rows[first:] if isinstance(self.rows, list) else self.rows.slice(first)
        return Chunk(rows=rows, texts=self.texts[first:])


def as_texts(rows: "pa.Table | Rows", columns: Sequence[str]) -> list[list[str | None]]:
    """Return the rows as texts, for CSV and TSV: what is not a text as JSON, or as Arrow writes it.

    Raises:
        UserError: a JSON object with a name that no earlier one has.
    """
    if isinstance(rows, list):
        _require_columns(rows, columns)
        return [[as_text(row.get(name)) for name in columns] for row in rows]
    import pyarrow as pa

    texts = []
    for column in rows.columns:
        try:
            texts.append(column.cast(pa.large_string()).to_pylist())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            texts.append(
                [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist()]
            )
    return [list(row) for row in zip(*texts, strict=True)]


def as_objects(rows: "pa.Table | Rows") -> Rows:
    """Return the rows as JSON objects."""
    return rows if isinstance(rows, list) else rows.to_pylist()


def as_arrow(rows: "pa.Table | Rows", columns: Sequence[str]) -> "pa.Table":
    """Return the rows as an Arrow table; of JSON objects every column is texts, as its types may change on the way."""
    if not isinstance(rows, list):
        return rows
    import pyarrow as pa

    _require_columns(rows, columns)
    return pa.table({name: pa.array([as_text(row.get(name)) for row in rows], pa.large_string()) for name in columns})


def _require_columns(rows: Rows, columns: Sequence[str]) -> None:
    allowed = set(columns)
    new = next((name for row in rows for name in row if name not in allowed), None)
    require(
        new is None,
        f"A row has the name {new!r}, which the first rows lack, so it has no column: write output=<file>.jsonl.",
    )


def as_text(value: Any) -> str | None:
    """Return a value of JSON as a text."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
