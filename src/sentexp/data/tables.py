"""Tables in files: CSV, TSV, JSON Lines, JSON and Parquet, read through Arrow as columns of strings."""

import difflib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.data.arrow_spill import concat_or_spill
from sentexp.data.compressed import COMPRESSED, decompressed, inner_name
from sentexp.data.delimited import Delimited, Keys, TextFormat
from sentexp.data.encodings import marked_encoding, python_name
from sentexp.data.json_rows import JsonRows
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

__all__ = ["SUFFIXES", "Table", "TextFormat", "as_strings", "read_lines", "read_table", "require_columns"]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")


def is_table(file: Path) -> bool:
    """Tell whether a file has the ending of a table, compressed or not."""
    return Path(inner_name(file)).suffix.lower() in SUFFIXES


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
        file: with one of the endings `SUFFIXES`, compressed or not.
        columns: by configuration key, the names of the columns that are wanted.
        form: of CSV and TSV.

    Raises:
        UserError: the file cannot be read, a column is missing or named twice, or a row does not fit its header.
    """
    require(file.is_file(), f"data.path={file} is a folder with the name of a file: name a file in it.")
    with decompressed(file, f"data.path={file}") as (plain, ending):
        require(
            ending in SUFFIXES,
            f"data.path={file} has the ending {ending!r}: it must be one of {', '.join(SUFFIXES)}, or such a file "
            f"compressed ({', '.join(COMPRESSED)}).",
        )
        require(plain.stat().st_size > 0, f"data.path={file} is empty: it must hold a header and at least one row.")
        table = _read_plain(plain, ending, columns, form, str(file))
    require(
        table.columns.num_rows > 0,
        f"data.path={file} has 0 rows{' that fit its header' if table.skipped else ''}: it must hold at least one.",
    )
    return table


def _read_plain(file: Path, ending: str, columns: dict[str, str], form: TextFormat, name: str) -> Table:
    keys = Keys()
    match ending:
        case ".csv" | ".tsv":
            return _read_delimited(Delimited(file, form, ending, keys, name), columns)
        case ".parquet":
            return Table(columns=_read_parquet(file, columns, name))
        case ".txt":
            return Table(columns=_read_labelled_lines(file, form.encoding, columns, name))
        case _:
            return Table(columns=_read_json(JsonRows(file, form.encoding, keys, name), columns))


def as_strings(columns: "pa.Table", wanted: Sequence[str], file: object) -> "pa.Table":
    """Return the wanted columns as `large_string`; whatever is not a plain value is refused."""
    import pyarrow as pa

    arrays = {}
    for name in wanted:
        column = columns.column(name)
        try:
            arrays[name] = column.cast(pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(
                f"The column {name} of {file} holds {column.type}: texts, numbers and words can be read."
            ) from None
    return pa.table(arrays)


def _as_typed(name: str) -> str:
    """Return a name, quoted where it has blanks that are not seen."""
    return name if name == name.strip() and name else f"'{name}'"


def _near(key: str, name: str, present: Sequence[str]) -> str:
    """Return a question that names the column which was probably meant, as it is typed."""
    plain = name.strip().casefold()
    meant = [column for column in present if column.strip().casefold() == plain]
    meant = meant or difflib.get_close_matches(name, present, n=1, cutoff=0.6)
    if not meant:
        return ""
    word = f"{key}={_as_typed(meant[0])}"
    return f' Did you mean "{word}"?' if "'" in word else f" Did you mean {word}?"


def require_columns(present: Sequence[str], columns: dict[str, str], where: object, hint: str = "") -> None:
    """Refuse a table that lacks a wanted column, or has it twice."""
    for key, name in columns.items():
        listed = ", ".join(map(_as_typed, map(str, present)))
        require(
            name in present,
            f"{key}={_as_typed(name)} is not a column of {where}: its columns are {listed}{hint}."
            f"{_near(key, name, present)}",
        )
        require(
            list(present).count(name) == 1,
            f"{key}={name} is the name of {list(present).count(name)} columns of {where}: rename all but one.",
        )


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
    return UserError(f"{name} cannot be read as .parquet ({str(error).splitlines()[0][:200]}): fix it.")


def _read_parquet(file: Path, columns: dict[str, str], name: str) -> "pa.Table":
    import pyarrow as pa

    wanted = list(dict.fromkeys(columns.values()))
    with open_parquet(file, name) as stream:
        require_columns(stream.schema_arrow.names, columns, name)
        try:
            if stream.metadata.num_rows == 0:
                return as_strings(stream.read(wanted), wanted, name)
            batches = (pa.Table.from_batches([batch]) for batch in stream.iter_batches(columns=wanted))
            return concat_or_spill(as_strings(batch, wanted, name) for batch in batches)
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


LABEL = "__label__"


def _read_labelled_lines(file: Path, encoding: str | None, columns: dict[str, str], name: str) -> "pa.Table":
    """Read lines in fastText's form, `__label__positive a warm film`, as the columns text and label.

    Raises:
        UserError: a line without a label, or with several.
    """
    import pyarrow as pa

    require_columns(("text", "label"), columns, name, f" ({LABEL}<label> before the text of each line)")
    encoding = python_name(encoding or marked_encoding(file) or "utf-8")
    texts, labels = [], []
    try:
        with file.open(encoding=encoding, newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                label, _, text = line.strip("\r\n").partition(" ")
                require(
                    label.startswith(LABEL) and not text.lstrip().startswith(LABEL),
                    f"Line {number} of {name} reads {line.strip()[:60]!r}: it must be one {LABEL}<label> and its text.",
                )
                texts.append(text)
                labels.append(label.removeprefix(LABEL))
    except UnicodeError:
        raise UserError(f"{name} is not {encoding}: name its encoding with data.encoding=<name>.") from None
    wanted = {"text": pa.array(texts, pa.large_string()), "label": pa.array(labels, pa.large_string())}
    return pa.table({column: wanted[column] for column in dict.fromkeys(columns.values())})


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
