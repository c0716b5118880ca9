"""What sources of every kind have in common: the names of splits and columns, and how their files are joined."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import DataConfig, TableData
from sentexp.data.tables import TextFormat, read_table
from sentexp.errors import require
from sentexp.system.hub import is_local, local_path, snapshot

if TYPE_CHECKING:
    import pyarrow as pa

ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SLICE = "slice."


@dataclass(kw_only=True, slots=True)
class RawSplits:
    """Tables of strings by split, notes, and rows skipped by split."""

    splits: dict[str, "pa.Table"]
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


def read_splits(
    files: dict[str, list[Path]],
    columns: dict[str, str],
    form: TextFormat,
    finish: Callable[["pa.Table", Path], "pa.Table"],
) -> RawSplits:
    """Read and join the files of each split."""
    import pyarrow as pa

    raw = RawSplits(splits={})
    for name, parts in files.items():
        tables = [read_table(part, columns, form) for part in parts]
        finished = [finish(table.columns, part) for table, part in zip(tables, parts, strict=True)]
        raw.splits[name] = pa.concat_tables(finished)
        raw.notes += [note for table in tables for note in table.notes]
        raw.skipped[name] = sum(table.skipped for table in tables)
    return raw


def dataset_root(data: DataConfig, patterns: list[str]) -> Path:
    """Return the folder or file of a data set with a layout of its own."""
    assert data.path is not None
    if is_local(data.path):
        return local_path("data.path", data.path)
    return snapshot("data.path", data.path, data.revision, "dataset", patterns)


def require_no_columns(data: TableData, what: str) -> None:
    """Refuse slices, groups and columns of labels of a folder that holds nothing but texts and labels."""
    require(
        isinstance(data.label, str),
        f"data.path={data.path} is {what}, and data.label={data.label} names columns of a table: leave data.label out.",
    )
    pair = [] if data.pair_template is None else [str(data.pair_template)]
    wanted = [*data.slices, *([data.group] if data.group is not None else []), *pair]
    require(
        not wanted,
        f"data.path={data.path} is {what}, which has no column {', '.join(wanted)}: leave data.slices, data.group and "
        "data.text_pair out, or write the texts into a table.",
    )
