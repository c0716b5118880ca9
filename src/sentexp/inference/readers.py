"""The input of `predict`: the tables that training reads, in pieces, so that their length does not count."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sentexp.config import TextTemplate, text_template
from sentexp.data.arrow_folders import ArrowFolder, is_arrow_folder
from sentexp.data.compressed import COMPRESSED, decompressed
from sentexp.data.delimited import Delimited, Keys, TextFormat
from sentexp.data.json_rows import JsonRows, Rows
from sentexp.data.labelled_lines import COLUMNS, LabelledLines
from sentexp.data.spreadsheets import SPREADSHEETS, Spreadsheet
from sentexp.data.tables import SUFFIXES, open_parquet, require_columns, require_one_file
from sentexp.data.text_parts import join_columns, text_columns
from sentexp.errors import UserError, require
from sentexp.inference.row_formats import Chunk, as_text

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUTS = tuple(ending for ending in SUFFIXES if ending not in (".json", ".txt", *SPREADSHEETS))
STANDARD = "-"
PIECE = 256
"""Rows that are read at one time."""
CHUNK_CHARACTERS = 1 << 24
"""Characters of the texts of a chunk; one that has more ends sooner than its rows say."""
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
        path: of a file, compressed or not, or of a folder that `datasets` has saved; - is standard input.
        form: one of the endings without its dot; None is by the ending, or by the first bytes of standard input.
        text_format: of files of texts; None is what their ending and their bytes say.
        piece: rows that are read at one time.

    Raises:
        UserError: the file is missing, empty, or of another format.
    """
    name = "standard input" if path == STANDARD else path
    text_format = text_format or TextFormat()
    if path != STANDARD and is_arrow_folder(Path(path).expanduser()):
        yield _saved_source(ArrowFolder(Path(path).expanduser(), name), piece)
        return
    with _as_file(path) as (file, ending), file.open("rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        require(bool(start), f"input={path} is empty: it must hold a header or rows.")
        if form is None:
            form = _by_first_bytes(start) if path == STANDARD else _known_ending("input", path, ending)
        match form:
            case "parquet":
                yield _parquet_source(stream, name, piece)
            case "jsonl" | "json":
                yield _json_source(JsonRows(file, text_format.encoding, KEYS, name), form, piece)
            case "txt" if text_format.columns or text_format.delimiter:
                yield _delimited_source(Delimited(file, text_format, ".tsv", KEYS, name), "tsv", piece)
            case "txt":
                yield _lines_source(LabelledLines(file, text_format.encoding, KEYS, name, unlabelled=True), piece)
            case "xlsx" | "ods":
                yield _sheet_source(Spreadsheet(file, text_format, ending, KEYS, name), form, piece)
            case _:
                yield _delimited_source(Delimited(file, text_format, f".{form}", KEYS, name), form, piece)


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


class Source:
    """The rows of a file or of standard input; see `open_source`.

    `textual` are the columns that hold texts, `notes` sentences for the person at the keyboard, and `hint` what to try
    where a column is missing.

    Args:
        name: of the input, for sentences.
        form: the ending without its dot; arrow is a folder.
        columns: their names.
        pieces: Arrow tables, or objects of JSON.
        rows: how many there are; None is not known.
        schema: of Arrow tables.
    """

    def __init__(
        self,
        name: str,
        form: str,
        columns: list[str],
        pieces: "Iterator[pa.Table] | Iterator[Rows]",
        rows: int | None,
        schema: "pa.Schema | None" = None,
    ) -> None:
        self.name, self.form, self.columns, self.rows, self.schema = name, form, columns, rows, schema
        self.textual, self.notes, self.delimiter, self.hint = columns, list[str](), ",", ""
        self._pieces = pieces

    def choose_text(self, wanted: str | None, usual: str | None) -> str:
        """Return the column of the texts: the one that is wanted, else that of the run, else `text`, else the only one.

        What is wanted, and that of the run, may be a template of several columns.

        Raises:
            UserError: there is no such column, or none can be told.
        """
        if wanted is not None:
            self._require(wanted)
            return wanted
        for name in (usual, "text"):
            if name is not None and set(text_template("text", name).columns) <= set(self.columns):
                self._require(name)
                return name
        require(
            len(self.textual) == 1,
            f"{self.name} has no column {' or '.join(dict.fromkeys(filter(None, (usual, 'text'))))}: name the one that "
            f"holds the texts with text=<column>; its columns are {', '.join(self.columns)}{self.hint}.",
        )
        return self.textual[0]

    def _require(self, text: str) -> None:
        require_columns(self.columns, text_columns("text", text_template("text", text)), self.name)

    def chunks(self, column: str, most: int) -> Iterator[Chunk]:
        """Yield all rows; where a chunk ends depends on the input alone.

        Args:
            column: of the texts, or a template of several.
            most: rows of a chunk, which ends with the piece that reaches them.
        """
        pieces: list[Any] = []
        texts: list[str | None] = []
        size = seen = 0
        template = text_template("text", column)
        for piece in self._pieces:
            read = self._texts(piece, template, seen)
            seen += len(read)
            pieces.append(piece)
            texts += read
            size += sum(len(text) for text in read if text is not None)
            if len(texts) >= most or size >= CHUNK_CHARACTERS:
                yield Chunk(rows=_joined(pieces), texts=texts)
                pieces, texts, size = [], [], 0
        if texts:
            yield Chunk(rows=_joined(pieces), texts=texts)

    def _texts(self, piece: "pa.Table | Rows", template: TextTemplate, before: int) -> list[str | None]:
        import pyarrow as pa

        strings = {column: self._strings(piece, column, before) for column in template.columns}
        texts: list[str | None] = join_columns(pa.table(strings), template).to_pylist()
        return texts

    def _strings(self, piece: "pa.Table | Rows", column: str, before: int) -> Any:
        """Return the values of a column as Arrow's strings."""
        import pyarrow as pa

        if isinstance(piece, list):
            return pa.array([as_text(row.get(column)) for row in piece], pa.large_string())
        values = piece.column(column)
        try:
            strings = values.cast(pa.large_string())
            strings.validate(full=True)
            return strings
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            require(
                not isinstance(error, UnicodeDecodeError) and "UTF8" not in str(error),
                f"Row {before + _first_undecodable(values) + 1} of {self.name} holds a {column} that is not UTF-8: "
                "fix it.",
            )
            raise UserError(
                f"text={column} holds {values.type} in {self.name}: name a column of texts with text=<column>; its "
                f"columns are {', '.join(self.columns)}."
            ) from None


def _joined(pieces: list[Any]) -> "pa.Table | Rows":
    if isinstance(pieces[0], list):
        return [row for piece in pieces for row in piece]
    import pyarrow as pa

    return pa.concat_tables(pieces).combine_chunks()


def _first_undecodable(values: "pa.ChunkedArray") -> int:
    for number, value in enumerate(values):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return number
    return 0
