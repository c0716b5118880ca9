"""Tables in files, read through Arrow as columns of strings: endings `SUFFIXES`, folders that `datasets` saves."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.data.arrow_folders import ADMINISTRATIVE, ArrowFolder, is_arrow_folder, saved_splits
from sentexp.data.arrow_spill import concat_or_spill
from sentexp.data.columns import require_columns
from sentexp.data.compressed import COMPRESSED, decompressed, inner_name
from sentexp.data.delimited import Delimited, Keys, TextFormat
from sentexp.data.json_rows import JsonRows
from sentexp.data.labelled_lines import COLUMNS, LABEL, LabelledLines
from sentexp.data.spreadsheets import SPREADSHEETS, Spreadsheet
from sentexp.errors import UserError, first_line, require

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

__all__ = ["SUFFIXES", "Table", "TextFormat", "as_strings", "read_lines", "read_table"]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", *SPREADSHEETS)


def is_table(path: Path) -> bool:
    """Tell whether a path is a saved data set, or has the ending of a table, compressed or not."""
    if path.name in ADMINISTRATIVE:
        return False
    return Path(inner_name(path)).suffix.lower() in SUFFIXES or is_arrow_folder(path)


JSON_ROWS = 1 << 13
"""Rows of JSON that are read at one time."""


@dataclass(kw_only=True, slots=True)
class Table:
    """The wanted columns of a file, as strings with nulls, and what reading it showed.

    `skipped` counts rows that do not fit the table; `notes` are sentences for the person at the keyboard.
    """

    columns: "pa.Table"
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


def read_table(file: Path, columns: dict[str, str], form: TextFormat) -> Table:
    """Return columns of a file as `large_string`, in file order.

    Args:
        file: with one of the endings `SUFFIXES`, compressed or not; or a folder that `datasets` has saved.
        columns: by configuration key, the names of the columns that are wanted.
        form: of files of texts.

    Raises:
        UserError: the file cannot be read, a column is missing or named twice, or a row does not fit its header.
    """
    if is_arrow_folder(file):
        table = Table(columns=_read_saved(ArrowFolder(file, str(file)), columns, form))
    else:
        table = _read_file(file, columns, form)
    require(
        table.columns.num_rows > 0,
        f"data.path={file} has 0 rows{' that fit its header' if table.skipped else ''}: it must hold at least one.",
    )
    return table


def look_at_header(file: Path, columns: dict[str, str], form: TextFormat) -> None:
    """Refuse a CSV, TSV or Parquet file whose header lacks a wanted column; no row is read.

    Raises:
        UserError: a column is missing or named twice.
    """
    ending = file.suffix.lower()
    if ending == ".parquet":
        with open_parquet(file, file) as stream:
            require_columns(stream.schema_arrow.names, columns, file)
    elif ending in (".csv", ".tsv"):
        try:
            table = Delimited(file, form, ending, Keys(), str(file), whole=False)
        except UnicodeError:  # another encoding, which is detected where the whole file is read
            return
        require_columns(table.names, columns, file, table.header_hint())


def require_one_file(key: str, path: str) -> None:
    """Refuse a folder in the place of a file, with what to write instead."""
    if splits := saved_splits(Path(path).expanduser()):
        one = f"{key}={path.rstrip('/')}/{splits[-1]}"
        raise UserError(f"{key}={path} has the splits {', '.join(splits)}: name one of them, as in {one}.")
    require(not Path(path).expanduser().is_dir(), f"{key}={path} is a folder: name a file in it.")


def matching_files(key: str, path: str) -> list[Path] | None:
    """Return the files that a pattern such as `part-*.csv` matches, in their order; None where it is not a pattern.

    Raises:
        UserError: it matches none.
    """
    if not has_magic(path) or Path(path).expanduser().exists():
        return None
    pattern = Path(path).expanduser().absolute()
    found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    found = [file for file in found if file.is_file()]
    require(bool(found), f"{key}={path} matches no file: name a file, a folder, or a pattern such as part-*.csv.")
    return found


def _read_file(file: Path, columns: dict[str, str], form: TextFormat) -> Table:
    require(file.is_file(), f"data.path={file} is a folder with the name of a file: name a file in it.")
    with decompressed(file, f"data.path={file}") as (plain, ending):
        require(
            ending in SUFFIXES,
            f"data.path={file} has the ending {ending!r}: it must be one of {', '.join(SUFFIXES)}, or such a file "
            f"compressed ({', '.join(COMPRESSED)}).",
        )
        require(plain.stat().st_size > 0, f"data.path={file} is empty: it must hold a header and at least one row.")
        return _read_plain(plain, ending, columns, form, str(file))


def _read_plain(file: Path, ending: str, columns: dict[str, str], form: TextFormat, name: str) -> Table:
    keys = Keys()
    match ending:
        case ".csv" | ".tsv":
            return _read_delimited(Delimited(file, form, ending, keys, name), columns)
        case ".parquet":
            return Table(columns=_read_parquet(file, columns, name, form.lists))
        case ".txt" if form.columns or form.delimiter:
            return _read_delimited(Delimited(file, form, ".tsv", keys, name), columns)
        case ".txt":
            return Table(
                columns=_read_labelled_lines(
                    LabelledLines(file, form.encoding, keys, name, several=bool(form.lists)), columns
                )
            )
        case ".xlsx" | ".ods":
            return _read_sheet(Spreadsheet(file, form, ending, keys, name), columns)
        case _:
            return Table(columns=_read_json(JsonRows(file, form.encoding, keys, name), columns))


def as_strings(columns: "pa.Table", wanted: Sequence[str], file: object, lists: Sequence[str] = ()) -> "pa.Table":
    """Return the wanted columns as `large_string`; whatever is not a plain value is refused.

    Args:
        columns: a table.
        wanted: names of its columns.
        file: that it is of, for the message.
        lists: those among the columns whose values may be lists, which are written in JSON.
    """
    import pyarrow as pa

    arrays = {}
    for name in wanted:
        column = columns.column(name)
        if name in lists and (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            column = pa.chunked_array([[_scalar(value) for value in column.to_pylist()]], pa.large_string())
        try:
            arrays[name] = column.cast(pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(
                f"The column {name} of {file} holds {column.type}: texts, numbers and words can be read, and lists of "
                "labels with task.loss=multi_label."
            ) from None
    return pa.table(arrays)


def _read_delimited(file: Delimited, columns: dict[str, str]) -> Table:
    require(file.rows > 0, f"data.path={file.name} has 0 rows: it must hold at least one row below its header.")
    require_columns(file.names, columns, file.name, file.header_hint())
    wanted = list(dict.fromkeys(columns.values()))
    table = concat_or_spill(file.tables(wanted))
    return Table(columns=table, skipped=file.skipped, notes=file.notes)


def open_parquet(source: Any, name: object) -> "ParquetFile":
    """Open a Parquet file.

    Raises:
        UserError: it is not one.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_parquet(name, error) from None


def unreadable_parquet(name: object, error: Exception) -> UserError:
    """Return what is wrong with a Parquet file."""
    return UserError(f"{name} cannot be read as .parquet ({first_line(error)}): fix it.")


def _read_parquet(file: Path, columns: dict[str, str], name: str, lists: Sequence[str]) -> "pa.Table":
    import pyarrow as pa

    wanted = list(dict.fromkeys(columns.values()))
    with open_parquet(file, name) as stream:
        require_columns(stream.schema_arrow.names, columns, name)
        try:
            if stream.metadata.num_rows == 0:
                return as_strings(stream.read(wanted), wanted, name, lists)
            batches = (pa.Table.from_batches([batch]) for batch in stream.iter_batches(columns=wanted))
            return concat_or_spill(as_strings(batch, wanted, name, lists) for batch in batches)
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable_parquet(name, error) from None


def _read_json(file: JsonRows, columns: dict[str, str]) -> "pa.Table":
    """Read columns of JSON rows; a value that a row lacks is null."""
    import pyarrow as pa

    wanted = list(dict.fromkeys(columns.values()))

    def tables() -> Iterator[pa.Table]:
        for rows in file.blocks(JSON_ROWS):
            values = {name: [_scalar(row.get(name)) for row in rows] for name in wanted}
            yield pa.table({name: pa.array(column, pa.large_string()) for name, column in values.items()})
        require(bool(file.columns), f"data.path={file.name} has 0 rows: it must hold at least one.")

    table = concat_or_spill(tables())
    require_columns(sorted(file.columns), columns, file.name)
    return table


def _read_labelled_lines(file: LabelledLines, columns: dict[str, str]) -> "pa.Table":
    require_columns(COLUMNS, columns, file.name, f" ({LABEL}<label> before the text of each line)")
    wanted = list(dict.fromkeys(columns.values()))
    return _joined((table.select(wanted) for table in file.tables()), wanted)


def _read_sheet(file: Spreadsheet, columns: dict[str, str]) -> Table:
    require_columns(file.names, columns, file.name, file.header_hint())
    wanted = list(dict.fromkeys(columns.values()))
    table = _joined(file.tables(wanted), wanted)
    return Table(columns=table, skipped=file.skipped, notes=file.notes)


def _read_saved(folder: ArrowFolder, columns: dict[str, str], form: TextFormat) -> "pa.Table":
    """Read columns of a saved data set; classes by name, or by number where the configuration names them."""
    require_columns(folder.schema.names, columns, folder.name)
    wanted = list(dict.fromkeys(columns.values()))

    def tables() -> "Iterator[pa.Table]":
        for batch in folder.batches():
            rows = batch.select(wanted)
            rows = folder.named(rows, wanted, form.lists) if form.named_classes else rows
            yield as_strings(rows, wanted, folder.name, form.lists)

    return _joined(tables(), wanted)


def _joined(pieces: "Iterator[pa.Table]", wanted: Sequence[str]) -> "pa.Table":
    """Return the pieces as one table of `large_string`, which may have no rows."""
    import pyarrow as pa

    none = pa.table([pa.array([], pa.large_string()) for _ in wanted], names=list(wanted))
    return concat_or_spill(chain([none], pieces))


def _scalar(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    return json.dumps(value, ensure_ascii=False)


def read_lines(stream: io.BufferedIOBase, encoding: str) -> list[str]:
    """Return the lines of a small text, without their ends and without empty ones."""
    lines = stream.read().decode(encoding).replace("\r\n", "\n").split("\n")  # splitlines() also cuts at U+0085
    return [line for line in lines if line.strip()]
