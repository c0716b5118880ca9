"""The input of `predict`: the tables that training reads, in pieces, so that their length does not count."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sentexp.data.arrow_folders import ArrowFolder, is_arrow_folder
from sentexp.data.compressed import COMPRESSED, decompressed
from sentexp.data.delimited import Delimited, Keys, TextFormat
from sentexp.data.json_rows import JsonRows
from sentexp.data.labelled_lines import COLUMNS, LabelledLines
from sentexp.data.sources.class_folders import class_files, class_splits, read_classes
from sentexp.data.spreadsheets import SPREADSHEETS, Spreadsheet
from sentexp.data.tables import SUFFIXES, matching_files, open_parquet, require_one_file
from sentexp.errors import UserError, require
from sentexp.inference.source import Source, joined

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUTS = tuple(ending for ending in SUFFIXES if ending not in (".json", ".txt", *SPREADSHEETS))
STANDARD = "-"
PIECE = 256
"""Rows that are read at one time."""
KEYS = Keys(
    path="input",
    columns="columns",
    encoding="encoding",
    delimiter="delimiter",
    unquoted="save it as .tsv if it does not quote",
    ragged="name what divides columns with delimiter=<letter>",
    sheet="sheet",
    skip="",
)


def format_of(key: str, path: str) -> str:
    """Return the format of a file by its ending.

    Raises:
        UserError: an ending of another format.
    """
    return _known_ending(key, path, Path(path).suffix.lower())


def _known_ending(key: str, path: str, ending: str) -> str:
    endings = SUFFIXES if key == "input" else OUTPUTS
    packed = f", or such a file compressed ({', '.join(COMPRESSED)})" if key == "input" else ""
    require(
        ending in endings,
        f"{key}={path} has the ending {ending!r}: it must be one of {', '.join(endings)}{packed}, or - for standard "
        f"{key} with format=csv, tsv or jsonl.",
    )
    return ending.removeprefix(".")


@contextmanager
def open_source(
    path: str, form: str | None = None, text_format: TextFormat | None = None, piece: int = PIECE
) -> "Iterator[Source]":
    """Yield the rows of an input; see `Source`.

    Args:
        path: of a file, compressed or not, or of files by a pattern; of a folder that `datasets` has saved, or that has
            one of texts for each class; - is standard input.
        form: one of the endings without its dot; None is by the ending, or by the first bytes of standard input.
        text_format: of files of texts; None is what their ending and their bytes say.
        piece: rows that are read at one time.

    Raises:
        UserError: the file is missing, empty, or of another format.
    """
    name = "standard input" if path == STANDARD else path
    text_format = text_format or TextFormat()
    if path != STANDARD:
        folder = Path(path).expanduser()
        if (files := matching_files("input", path)) is not None:
            with ExitStack() as opened:
                parts = [opened.enter_context(open_source(str(file), form, text_format, piece)) for file in files]
                yield joined(parts, name)
            return
        if is_arrow_folder(folder):
            yield _saved_source(ArrowFolder(folder, name), piece)
            return
        if class_files(folder):
            yield _class_source(folder, text_format, name, piece)
            return
    with _as_file(path) as (file, ending), file.open("rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        require(bool(start), f"input={path} is empty: it must hold a header or rows.")
        if form is None:
            form = _by_first_bytes(start) if path == STANDARD else _known_ending("input", path, ending)
        yield _file_source((file, ending), stream, form, text_format, name, piece)


def _file_source(
    plain: tuple[Path, str], stream: IO[bytes], form: str, text_format: TextFormat, name: str, piece: int
) -> "Source":
    """Return the rows of a plain file, which is open as a stream as well."""
    file, ending = plain
    match form:
        case "parquet":
            return _parquet_source(stream, name, piece)
        case "jsonl" | "json":
            return _json_source(JsonRows(file, text_format.encoding, KEYS, name), form, piece)
        case "txt" if text_format.columns or text_format.delimiter:
            return _delimited_source(Delimited(file, text_format, ".tsv", KEYS, name), "tsv", piece)
        case "txt":
            return _lines_source(LabelledLines(file, text_format.encoding, KEYS, name, unlabelled=True), piece)
        case "xlsx" | "ods":
            return _sheet_source(Spreadsheet(file, text_format, ending, KEYS, name), form, piece)
        case _:
            return _delimited_source(Delimited(file, text_format, f".{form}", KEYS, name), form, piece)


def input_files(path: str) -> list[Path]:
    """Return the files that hold the rows of an input; one that is missing is one of them.

    Raises:
        UserError: a pattern matches no file.
    """
    place = Path(path).expanduser()
    if (files := matching_files("input", path)) is not None:
        return files
    if is_arrow_folder(place):
        return ArrowFolder(place, path).files
    return class_files(place) or [place]


@contextmanager
def _as_file(path: str) -> Iterator[tuple[Path, str]]:
    """Yield the plain file of an input and its ending; standard input is kept in one that goes with its end."""
    if path == STANDARD:
        with tempfile.NamedTemporaryFile(prefix="sentexp-input-") as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            kept.flush()
            yield Path(kept.name), ""
        return
    file = Path(path).expanduser()
    require(file.exists(), f"input={path} does not exist: name a file, or - for standard input.")
    if splits := class_splits(file) if file.is_dir() else []:
        raise UserError(f"input={path} has classes in its folders {', '.join(splits)}: name one of these.")
    require_one_file("input", path)
    with decompressed(file, f"input={path}") as plain:
        yield plain


def _by_first_bytes(start: bytes) -> str:
    if start == b"PAR1":
        return "parquet"
    return "jsonl" if start.startswith(b"{") else "csv"


def _parquet_source(stream: IO[bytes], name: str, piece: int) -> "Source":
    import pyarrow as pa

    file = open_parquet(stream, name)
    schema = file.schema_arrow
    tables = (pa.Table.from_batches([batch]) for batch in file.iter_batches(batch_size=piece))
    source = Source(name, "parquet", list(schema.names), tables, file.metadata.num_rows, schema)
    source.textual = _textual(schema)
    return source


def _json_source(file: JsonRows, form: str, piece: int) -> "Source":
    count = file.count()
    blocks = file.blocks(piece)
    first = next(blocks, [])
    require(bool(first), f"{file.name} has no rows: each line must be a JSON object.")
    source = Source(file.name, form, list(file.columns), chain([first], blocks), count)
    source.textual = [name for name in source.columns if all(isinstance(row.get(name, ""), str) for row in first)]
    return source


def _delimited_source(file: Delimited, form: str, piece: int) -> "Source":
    source = Source(file.name, form, file.names, _cut(file.tables(), piece), file.rows, _strings(file.names))
    source.delimiter, source.notes, source.hint = file.delimiter, file.notes, file.header_hint()
    return source


def _sheet_source(file: Spreadsheet, form: str, piece: int) -> "Source":
    source = Source(file.name, form, file.names, _cut(file.tables(), piece), None, _strings(file.names))
    source.notes, source.hint = file.notes, file.header_hint()
    return source


def _lines_source(file: LabelledLines, piece: int) -> "Source":
    source = Source(file.name, "txt", list(COLUMNS), _cut(file.tables(), piece), None, _strings(COLUMNS))
    source.textual = ["text"]
    return source


def _class_source(folder: Path, text_format: TextFormat, name: str, piece: int) -> "Source":
    table = read_classes(folder, text_format.encoding)
    source = Source(name, "folder", list(COLUMNS), _cut(iter([table]), piece), table.num_rows, table.schema)
    source.textual = ["text"]
    return source


def _saved_source(folder: ArrowFolder, piece: int) -> "Source":
    columns = list(folder.schema.names)
    source = Source(folder.name, "arrow", columns, _cut(folder.batches(), piece), None, folder.schema)
    source.textual = _textual(folder.schema)
    return source


def _textual(schema: "pa.Schema") -> list[str]:
    import pyarrow as pa

    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]


def _strings(columns: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.large_string()) for name in columns])


def _cut(tables: "Iterator[pa.Table]", piece: int) -> "Iterator[pa.Table]":
    """Yield the rows of tables in pieces."""
    for table in tables:
        for start in range(0, table.num_rows, piece):
            yield table.slice(start, piece)
