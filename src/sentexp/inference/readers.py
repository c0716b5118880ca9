"""The input of `predict`, read in pieces so that its length does not count."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sentexp.data.encodings import detect, marked_encoding
from sentexp.data.tables import long_fields, require_columns
from sentexp.errors import UserError, require
from sentexp.inference.row_formats import Chunk, Objects, plain

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
STANDARD = "-"
PIECE = 256
"""Rows that are read at one time."""
CHUNK_CHARACTERS = 1 << 24
"""Characters of the texts of a chunk; one that has more ends sooner than its rows say."""


def format_of(key: str, path: str, given: str | None) -> str:
    """Return the format of a file: as given, else by its ending.

    Raises:
        UserError: an ending of no known format.
    """
    if given is not None:
        return given
    ending = Path(path).suffix.lower()
    require(
        ending in FORMATS,
        f"{key}={path} has the ending {ending!r}: it must be one of {', '.join(FORMATS)}, or - for standard "
        f"{key} with format=csv, tsv or jsonl.",
    )
    return FORMATS[ending]


@contextmanager
def open_source(
    path: str,
    form: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    piece: int = PIECE,
) -> "Iterator[Source]":
    """Yield the rows of an input; see `Source`.

    Raises:
        UserError: the file is missing, empty, or of another format.
    """
    file = Path(path).expanduser()
    if path != STANDARD:
        require(file.exists(), f"input={path} does not exist: name a file, or - for standard input.")
        require(file.is_file(), f"input={path} is a folder: name a file in it.")
        require(file.stat().st_size > 0, f"input={path} is empty: it must hold a header or rows.")
    opened: AbstractContextManager[IO[bytes]] = nullcontext(sys.stdin.buffer) if path == STANDARD else file.open("rb")
    with opened as stream:
        yield Source(path, stream, form, encoding, delimiter, piece)


class Source:
    """The rows of a file or of standard input; see `open_source`.

    Args:
        path: of the file; - is standard input.
        stream: that is open there.
        form: csv, tsv, jsonl or parquet; None is by the ending, or by the first letter of standard input.
        encoding: null is UTF-8, or what a byte order mark says.
        delimiter: of CSV and TSV; null is that of the format.
        piece: rows that are read at one time.

    Raises:
        UserError: it is empty, or of another format.
    """

    def __init__(
        self,
        path: str,
        stream: IO[bytes],
        form: str | None,
        encoding: str | None,
        delimiter: str | None,
        piece: int = PIECE,
    ) -> None:
        self.path, self.stream, self.name = path, stream, "standard input" if path == STANDARD else path
        self.piece = piece
        file = Path(path).expanduser()
        first = self._peek()
        if form is None:
            form = {b"{": "jsonl"}.get(first[:1], "csv") if path == STANDARD else format_of("input", path, None)
        require(
            path != STANDARD or (form != "parquet" and first != b"PAR1"),
            "input=- cannot be Parquet, which is read from its end: name the file.",
        )
        self.form = form
        self.encoding = encoding or (None if path == STANDARD else marked_encoding(file)) or "utf-8"
        self.delimiter = delimiter or {"tsv": "\t"}.get(form, ",")
        self.size: int | None = None if path == STANDARD else file.stat().st_size
        self.done = 0
        """Bytes that were read, or rows of Parquet; `size` has the same unit."""
        self.columns: list[str] = []
        self.textual: list[str] = []
        """The columns that hold texts."""
        self._pieces = self._open()

    def _peek(self) -> bytes:
        if isinstance(self.stream, io.BufferedReader):
            return self.stream.peek(4)[:4]
        start = self.stream.read(4)  # standard input that is held in memory
        self.stream.seek(0)
        return start

    def _open(self) -> "Iterator[pa.Table | Objects]":
        """Read as much as tells the columns."""
        if self.form == "parquet":
            return self._parquet()
        if self.form == "jsonl":
            return self._json_lines()
        return self._delimited()

    def choose_text(self, wanted: str | None, usual: str | None) -> str:
        """Return the column of the texts: the one that is wanted, else that of the run, else `text`, else the only one.

        Raises:
            UserError: there is no such column, or none can be told.
        """
        if wanted is not None:
            require_columns(self.columns, {"text": wanted}, self.name)
            return wanted
        for name in (usual, "text"):
            if name is not None and name in self.columns:
                require_columns(self.columns, {"text": name}, self.name)
                return name
        require(
            len(self.textual) == 1,
            f"{self.name} has no column {' or '.join(dict.fromkeys(filter(None, (usual, 'text'))))}: name the one that "
            f"holds the texts with text=<column>; its columns are {', '.join(self.columns)}.",
        )
        return self.textual[0]

    def chunks(self, text: str, most: int) -> Iterator[Chunk]:
        """Yield all rows; where a chunk ends depends on the rows alone.

        Args:
            text: the column of the texts.
            most: rows of a chunk, which ends with the piece that reaches them.
        """
        held: list[Any] = []
        texts: list[str | None] = []
        size = seen = 0
        for piece in self._pieces:
            found = self._texts(piece, text, seen)
            seen += len(found)
            held.append(piece)
            texts += found
            size += sum(len(one) for one in found if one is not None)
            if len(texts) >= most or size >= CHUNK_CHARACTERS:
                yield Chunk(rows=_joined(held), texts=texts)
                held, texts, size = [], [], 0
        if texts:
            yield Chunk(rows=_joined(held), texts=texts)

    def _texts(self, piece: "pa.Table | Objects", column: str, before: int) -> list[str | None]:
        if isinstance(piece, list):
            return [plain(row.get(column)) for row in piece]
        import pyarrow as pa

        values = piece.column(column)
        try:
            return values.cast(pa.large_string()).to_pylist()  # type: ignore[no-any-return]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            require(
                not isinstance(error, UnicodeDecodeError) and "UTF8" not in str(error),
                f"Row {before + _first_undecodable(values) + 1} of {self.name} holds a {column} that is not UTF-8: "
                "mend it.",
            )
            raise UserError(
                f"text={column} holds {values.type} in {self.name}: name a column of texts with text=<column>; its "
                f"columns are {', '.join(self.columns)}."
            ) from None

    def _parquet(self) -> "Iterator[pa.Table]":
        import pyarrow as pa
        from pyarrow import parquet

        try:
            opened = parquet.ParquetFile(self.stream)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{self.name} cannot be read as .parquet ({str(error).splitlines()[0][:200]}): mend it."
            ) from None
        schema = opened.schema_arrow
        self.schema = schema
        self.columns = list(schema.names)
        self.textual = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        self.size = opened.metadata.num_rows

        def pieces() -> Iterator[pa.Table]:
            for batch in opened.iter_batches(batch_size=self.piece):
                self.done += batch.num_rows
                yield pa.Table.from_batches([batch])

        return pieces()

    def _delimited(self) -> "Iterator[pa.Table]":
        rows = self._rows()
        first = next(rows, None)
        if first is None:
            raise UserError(f"{self.name} has no header: its first line must name the columns.")
        self.columns = self.textual = first
        import pyarrow as pa

        string = pa.large_string()
        self.schema = pa.schema([pa.field(name, string) for name in first])

        def table(block: list[list[str]]) -> pa.Table:
            return pa.Table.from_arrays(
                [pa.array(column, string) for column in zip(*block, strict=True)], schema=self.schema
            )

        def pieces() -> Iterator[pa.Table]:
            block: list[list[str]] = []
            quoted = f"quote texts that hold {self.delimiter!r}"
            advice = quoted if self.form == "csv" else "TSV knows no quotation marks, so save it as .csv"
            for number, row in enumerate(rows, start=1):
                require(
                    len(row) == len(first),
                    f"Row {number} of {self.name} has {len(row)} of the {len(first)} columns of its header: {advice}, "
                    "mend it, or name what divides columns with delimiter=<letter>.",
                )
                block.append(row)
                if len(block) == self.piece:
                    yield table(block)
                    block = []
            if block:
                yield table(block)

        return pieces()

    def _rows(self) -> Iterator[list[str]]:
        """Yield header and rows; TSV has no quotation marks, as in GLUE."""
        lines = self._lines()
        if self.form == "tsv":
            for line in lines:
                if bare := line.rstrip("\r\n"):
                    yield bare.split(self.delimiter)
            return
        number = -1
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        with long_fields():
            try:
                for row in reader:
                    number += bool(row)
                    if row:
                        yield row
            except csv.Error as error:
                raise UserError(
                    f"Row {number + 1} of {self.name} cannot be read ({error}): a quotation mark is probably not "
                    "closed, or not doubled inside a text; mend it, or save the file as .tsv, which has none."
                ) from None

    def _lines(self) -> Iterator[str]:
        """Yield the lines with their ends; a byte order mark is taken off."""
        if "\n".encode(self.encoding)[-1:] != b"\n" or len("\n".encode(self.encoding)) > 1:
            lines = io.TextIOWrapper(self.stream, self.encoding, newline="")
            try:
                yield from lines
            except UnicodeError:
                raise UserError(
                    f"{self.name} is not {self.encoding}: name its encoding with encoding=<name>."
                ) from None
            finally:
                lines.detach()
            return
        for number, line in enumerate(self.stream, start=1):
            self.done += len(line)
            try:
                text = line.decode(self.encoding)
            except UnicodeDecodeError:
                likely = detect(line)
                raise UserError(
                    f"Line {number} of {self.name} is not {self.encoding}: save it as UTF-8, or name its encoding with "
                    f"encoding=<name>{f' ({likely} is likely)' if likely else ''}."
                ) from None
            yield text.removeprefix("\ufeff") if number == 1 else text

    def _json_lines(self) -> Iterator[Objects]:
        pieces = self._blocks()
        first = next(pieces, [])
        require(bool(first), f"{self.name} has no rows: each line must be a JSON object.")
        self.columns = list(dict.fromkeys(name for row in first for name in row))
        self.textual = [name for name in self.columns if all(isinstance(row.get(name, ""), str) for row in first)]

        def all_pieces() -> Iterator[Objects]:
            yield first
            yield from pieces

        return all_pieces()

    def _blocks(self) -> Iterator[Objects]:
        block: Objects = []
        for number, line in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"Line {number} of {self.name} is not JSON ({error.msg}): mend it.") from None
            require(isinstance(row, dict), f"Line {number} of {self.name} is no JSON object with names and values.")
            try:
                if "\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"Line {number} of {self.name} holds half of a surrogate pair, which is no character: mend it."
                ) from None
            block.append(row)
            if len(block) == self.piece:
                yield block
                block = []
        if block:
            yield block


def _joined(pieces: list[Any]) -> "pa.Table | Objects":
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
