"""Tables in files: CSV, TSV, JSON Lines, JSON and Parquet, read through Arrow as columns of strings."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sentexp.data.arrow_spill import LARGE, collect
from sentexp.data.encodings import detect, first_undecodable, marked_encoding, python_name
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
BLOCK = 1 << 24
LONGEST_FIELD = (1 << 31) - 1


@dataclass(kw_only=True, slots=True)
class Table:
    """The wanted columns of a file, as strings with nulls, and what reading it showed.

    `skipped` counts rows that are no rows of the table; `notes` are sentences for the person at the keyboard.
    """

    columns: "pa.Table"
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class TextFormat:
    """How a CSV or TSV file is written; null is what its ending and its bytes say."""

    encoding: str | None = None
    delimiter: str | None = None
    quoting: bool | None = None
    skip_ragged: bool = False


def read_table(file: Path, columns: dict[str, str], form: TextFormat) -> Table:
    """Return columns of a file as `large_string`, in file order.

    Args:
        file: with one of the endings `SUFFIXES`.
        columns: by configuration key, the names of the columns that are wanted.
        form: of CSV and TSV.

    Raises:
        UserError: the file cannot be read, a column is missing or named twice, or a row does not fit its header.
    """
    require(
        file.suffix.lower() in SUFFIXES,
        f"data.path={file} has the ending {file.suffix!r}: it must be one of {', '.join(SUFFIXES)}.",
    )
    require(file.is_file(), f"data.path={file} is a folder with the name of a file: name a file in it.")
    require(file.stat().st_size > 0, f"data.path={file} is empty: it must hold a header and at least one row.")
    match file.suffix.lower():
        case ".csv":
            table = _read_delimited(file, columns, form, ",", quoting=True)
        case ".tsv":
            table = _read_delimited(file, columns, form, "\t", quoting=False)  # GLUE's has no quoting
        case ".parquet":
            table = Table(columns=_read_parquet(file, columns))
        case _:
            table = Table(columns=_read_json(file, columns, form.encoding))
    require(
        table.columns.num_rows > 0,
        f"data.path={file} has 0 rows{' that fit its header' if table.skipped else ''}: it must hold at least one.",
    )
    return table


def as_strings(columns: "pa.Table", wanted: Sequence[str], file: object) -> "pa.Table":
    """Return the wanted columns as `large_string`; whatever is no plain value is refused."""
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


def require_columns(present: Sequence[str], columns: dict[str, str], where: object, hint: str = "") -> None:
    """Refuse a table that lacks a wanted column, or has it twice."""
    for key, name in columns.items():
        require(
            name in present,
            f"{key}={name} is not a column of {where}: its columns are {', '.join(map(str, present))}{hint}.",
        )
        require(
            list(present).count(name) == 1,
            f"{key}={name} is the name of {list(present).count(name)} columns of {where}: rename all but one.",
        )


def _read_delimited(file: Path, columns: dict[str, str], form: TextFormat, delimiter: str, quoting: bool) -> Table:
    import pyarrow as pa

    form = TextFormat(
        encoding=form.encoding or marked_encoding(file),
        delimiter=form.delimiter or delimiter,
        quoting=quoting if form.quoting is None else form.quoting,
        skip_ragged=form.skip_ragged,
    )
    named = form.encoding is not None
    form.encoding = form.encoding or "utf-8"
    try:
        return _parse(file, columns, form)
    except (UnicodeError, pa.ArrowInvalid) as error:
        if not isinstance(error, UnicodeError) and "UTF8" not in str(error):
            raise _unreadable(file, form, error) from None
    place = first_undecodable(file, form.encoding)
    detected = detect(place.sample)
    require(
        not named and detected is not None,
        f"Line {place.line} of {file} is not {form.encoding}: name its encoding with data.encoding=<name>"
        + (f" ({detected} is likely)." if detected else ", or save the file as UTF-8."),
    )
    form.encoding = detected
    try:
        table = _parse(file, columns, form)
    except (UnicodeError, pa.ArrowInvalid) as error:
        raise _unreadable(file, form, error) from None
    shown = place.text(detected or "")
    table.notes.append(
        f"{file} is not UTF-8 (line {place.line}); read as {detected}, which was detected: {shown!r}. "
        "If that looks wrong, name its encoding with data.encoding."
    )
    return table


def _parse(file: Path, columns: dict[str, str], form: TextFormat) -> Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    assert form.encoding is not None
    assert form.delimiter is not None
    present, blank = _header(file, form)
    require_columns(present, columns, file, _other_delimiter(present, form.delimiter))
    if form.quoting:
        _require_closed_quotes(file, form)
    ragged: list[Any] = []

    def skip(row: Any) -> str:
        ragged.append(row.text)
        return "skip" if form.skip_ragged else "error"

    wanted = list(dict.fromkeys(columns.values()))
    unique = [f"{index}" for index in range(len(present))]  # other columns may have any names, twice as well
    options: dict[str, Any] = {
        "read_options": arrow_csv.ReadOptions(
            encoding=form.encoding, block_size=BLOCK, column_names=unique, skip_rows=blank, skip_rows_after_names=1
        ),
        "parse_options": arrow_csv.ParseOptions(
            delimiter=form.delimiter,
            quote_char='"' if form.quoting else False,
            newlines_in_values=bool(form.quoting),
            invalid_row_handler=skip,
        ),
        "convert_options": arrow_csv.ConvertOptions(
            include_columns=[unique[present.index(name)] for name in wanted],
            column_types=dict.fromkeys(unique, pa.large_string()),
            strings_can_be_null=False,
        ),
    }
    if file.stat().st_size > LARGE:  # one block after the other
        table = collect(pa.Table.from_batches([batch]) for batch in arrow_csv.open_csv(file, **options))
    else:
        table = arrow_csv.read_csv(file, **options)
    notes = [f"{file}: {len(ragged):,} rows have not {len(present)} columns and were left out."] if ragged else []
    return Table(columns=table.rename_columns(wanted), skipped=len(ragged), notes=notes)


def _header(file: Path, form: TextFormat) -> tuple[list[str], int]:
    """Return the names of the columns, and the number of blank lines above them."""
    with long_fields(), file.open(encoding=python_name(form.encoding), newline="") as lines:
        rows = enumerate(_rows(lines, form, strict=False))
        try:
            blank, names = next((number, row) for number, row in rows if row)
        except (StopIteration, csv.Error):
            raise UserError(f"{file} has no header: its first line must name the columns.") from None
        require(
            any(row for _, row in rows), f"data.path={file} has 0 rows: it must hold at least one row below its header."
        )
        return names, blank


def _rows(lines: IO[str], form: TextFormat, strict: bool) -> Iterator[list[str]]:
    quoting: Any = csv.QUOTE_MINIMAL if form.quoting else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=form.delimiter or ",", quoting=quoting, strict=strict)


def _require_closed_quotes(file: Path, form: TextFormat) -> None:
    """Refuse a quotation mark that would join rows or vanish: Arrow reads on over one that is not closed."""
    with file.open("rb") as stream:
        if not any(b'"' in block for block in iter(lambda: stream.read(BLOCK), b"")):
            return
    number = 0
    try:
        with long_fields(), file.open(encoding=python_name(form.encoding), newline="") as lines:
            for row in _rows(lines, form, strict=True):
                number += bool(row)
    except csv.Error as error:
        raise UserError(
            f"Row {number} of {file} has a quotation mark that is not closed, or not doubled inside a text ({error}): "
            "mend it, or pass data.quoting=false if the file does not quote."
        ) from None


@contextmanager
def long_fields() -> Iterator[None]:
    """Let Python's reader take texts of any length."""
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _other_delimiter(present: list[str], delimiter: str) -> str:
    """Return a hint when the header looks as if it were written with another delimiter."""
    if len(present) == 1:
        for other in (";", "\t", ",", "|"):
            if other != delimiter and other in present[0]:
                return f"; pass \"data.delimiter='{other.replace(chr(9), chr(92) + 't')}'\" if that divides them"
    return ""


def _unreadable(file: Path, form: TextFormat, error: Exception) -> UserError:
    """Return what is wrong with a CSV file, with the number of the row, which only a serial reader knows."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    reason = str(error)
    present = len(_header(file, form)[0])
    with file.open("rb") as stream:
        try:
            reader = arrow_csv.open_csv(
                stream,
                read_options=arrow_csv.ReadOptions(
                    encoding=form.encoding or "utf-8",
                    use_threads=False,
                    block_size=BLOCK,
                    column_names=[f"{index}" for index in range(present)],
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=form.delimiter,
                    quote_char='"' if form.quoting else False,
                    newlines_in_values=bool(form.quoting),
                    ignore_empty_lines=True,
                ),
                convert_options=arrow_csv.ConvertOptions(include_columns=["0"], column_types={"0": pa.large_string()}),
            )
            for _ in reader:
                pass
        except (UnicodeError, pa.ArrowInvalid) as serial:
            reason = str(serial)
    reason = reason.removeprefix("CSV parse error: ")
    head, _, rest = reason.partition(":")
    if head.startswith("Row #"):
        number = int(head.removeprefix("Row #")) - 1  # the header is a row to Arrow
        return UserError(
            f"Row {number} of {file} has not the {present} columns of its header ({rest.strip()[:120]!r}): quote texts "
            f"that hold {form.delimiter!r}, mend the row, or leave such rows out with data.on_bad_rows=skip."
        )
    if "straddling" in reason:
        return UserError(
            f"{file} has a row of more than {BLOCK >> 20} MiB: a quotation mark is probably not closed; mend it, or "
            "pass data.quoting=false if the file does not quote."
        )
    return UserError(f"{file} cannot be read as {file.suffix} ({reason.splitlines()[0][:200]}): mend the file.")


def _read_parquet(file: Path, columns: dict[str, str]) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
        require_columns(schema.names, columns, file)
        wanted = list(dict.fromkeys(columns.values()))
        with parquet.ParquetFile(file) as stream:
            if stream.metadata.num_rows == 0:
                return as_strings(stream.read(wanted), wanted, file)
            batches = (pa.Table.from_batches([batch]) for batch in stream.iter_batches(columns=wanted))
            return collect(as_strings(batch, wanted, file) for batch in batches)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} cannot be read as .parquet ({str(error).splitlines()[0][:200]}): mend it.") from None


def _read_json(file: Path, columns: dict[str, str], encoding: str | None) -> "pa.Table":
    """Read JSON Lines in blocks, or one array of objects; a value that a row lacks is null."""
    import pyarrow as pa

    wanted = list(dict.fromkeys(columns.values()))
    present = set[str]()
    seen = 0

    def pieces() -> Iterator[pa.Table]:
        nonlocal seen, present
        for rows in _json_blocks(file, encoding):
            for number, row in enumerate(rows, start=seen + 1):
                require(isinstance(row, dict), f"Row {number} of {file} is no JSON object with names and values.")
                present |= row.keys()
            seen += len(rows)
            columns = {name: [_scalar(row.get(name)) for row in rows] for name in wanted}
            try:
                yield pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})
            except UnicodeEncodeError:
                number = _first_unencodable(columns) + seen - len(rows)
                raise UserError(
                    f"Row {number} of {file} holds half of a surrogate pair, which is no character: mend it."
                ) from None
        require(seen > 0, f"data.path={file} has 0 rows: it must hold at least one.")

    table = collect(pieces())
    require_columns(sorted(present), columns, file)
    return table


def _json_blocks(file: Path, encoding: str | None) -> Iterator[list[Any]]:
    encoding = python_name(encoding or marked_encoding(file) or "utf-8")
    with file.open(encoding=encoding) as stream:
        try:
            start = stream.read(1)
            while start.isspace():
                start = stream.read(1)
            stream.seek(0)
            if start == "[":
                yield json.load(stream)
                return
            number = 0
            while lines := stream.readlines(BLOCK):
                block = []
                for line in lines:
                    number += 1
                    if line.strip():
                        block.append(json.loads(line))
                if block:
                    yield block
        except UnicodeError:
            line_number = first_undecodable(file, encoding or "utf-8").line
            raise UserError(
                f"Line {line_number} of {file} is not {(encoding or '').removesuffix('-sig')}: name its encoding with "
                "data.encoding=<name>."
            ) from None
        except json.JSONDecodeError as error:
            line_number = error.lineno if start == "[" else number
            raise UserError(f"Line {line_number} of {file} is not JSON ({error.msg}): mend it.") from None


def _first_unencodable(columns: dict[str, list[str | None]]) -> int:
    """Return the first row, counted from 1, that holds what UTF-8 cannot say."""
    for number, row in enumerate(zip(*columns.values(), strict=True), start=1):
        if any(value != (value or "").encode("utf-8", "ignore").decode() for value in row if value):
            return number
    return 0


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
