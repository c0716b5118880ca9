"""The rows of an input of `predict`: which columns hold their texts, and chunks of them."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from sentexp.config import TextTemplate, text_template
from sentexp.data.columns import require_columns
from sentexp.data.json_rows import Rows
from sentexp.data.text_parts import join_columns, pair_texts, text_columns
from sentexp.errors import UserError, listed, require
from sentexp.inference.row_formats import Chunk, as_text

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_CHARACTERS = 1 << 24
"""Characters of the texts of a chunk; one that has more ends after fewer rows."""


class Source:
    """The rows of a file or of standard input; see `sentexp.inference.readers.open_source`.

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
        self.pieces = pieces

    def choose_text(self, wanted: str | None, usual: str | None) -> str:
        """Return the column of the texts: the one that is wanted, else that of the run, else `text`, else the only one.

        What is wanted, and that of the run, may be a template of several columns.

        Raises:
            UserError: there is no such column, or it is not clear which one holds the texts.
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
            f"holds the texts with text=<column>; its columns are {listed(self.columns)}{self.hint}.",
        )
        return self.textual[0]

    def choose_pair(self, wanted: str | None, usual: str | None) -> str | None:
        """Return the column of the second texts, or a template: the one that is wanted, else that of the run, if any.

        Raises:
            UserError: there is no such column, or the run reads no pairs.
        """
        require(
            usual is not None or wanted is None,
            f"text_pair={wanted} names second texts, and this run reads one text a row: leave it out.",
        )
        pair = wanted or usual
        if pair is not None:
            require_columns(self.columns, text_columns("text_pair", text_template("text_pair", pair)), self.name)
        return pair

    def _require(self, text: str) -> None:
        require_columns(self.columns, text_columns("text", text_template("text", text)), self.name)

    def chunks(self, column: str, most: int, pair: str | None = None) -> Iterator[Chunk]:
        """Yield all rows; where a chunk ends depends on the input alone.

        Args:
            column: of the texts, or a template of several.
            pair: the column of the second texts, or a template, where the run reads pairs.
            most: rows of a chunk, which ends with the piece that reaches them.
        """
        pieces: list[Any] = []
        texts: list[str | None] = []
        size = seen = 0
        template = text_template("text", column)
        other = None if pair is None else text_template("text_pair", pair)
        for piece in self.pieces:
            read = self._texts(piece, template, other, seen)
            seen += len(read)
            pieces.append(piece)
            texts += read
            size += sum(len(text) for text in read if text is not None)
            if len(texts) >= most or size >= CHUNK_CHARACTERS:
                yield Chunk(rows=_joined(pieces), texts=texts)
                pieces, texts, size = [], [], 0
        if texts:
            yield Chunk(rows=_joined(pieces), texts=texts)

    def _texts(
        self, piece: "pa.Table | Rows", template: TextTemplate, other: TextTemplate | None, before: int
    ) -> list[str | None]:
        import pyarrow as pa

        columns = dict.fromkeys([*template.columns, *(() if other is None else other.columns)])
        strings = pa.table({column: self._strings(piece, column, before) for column in columns})
        texts = join_columns(strings, template)
        if other is not None:
            texts = pair_texts(texts, join_columns(strings, other))
        read: list[str | None] = texts.to_pylist()
        return read

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


def joined(parts: Sequence[Source], name: str) -> Source:
    """Return the rows of several files as those of one.

    Args:
        parts: the files, of which there is at least one.
        name: of all of them, in sentences.

    Raises:
        UserError: they are of several formats, or have not the same columns.
    """
    first = parts[0]
    for part in parts[1:]:
        require(
            (part.form, part.columns) == (first.form, first.columns),
            f"{part.name} has the columns {', '.join(part.columns)} ({part.form}), and {first.name} "
            f"{', '.join(first.columns)} ({first.form}): files of one pattern must be alike.",
        )
        require(
            part.schema == first.schema,
            f"{part.name} has other types of columns than {first.name}: files of one pattern must be alike.",
        )
    counts = [part.rows for part in parts]
    rows = None if None in counts else sum(count or 0 for count in counts)
    pieces: Any = chain.from_iterable(part.pieces for part in parts)
    source = Source(name, first.form, first.columns, pieces, rows, first.schema)
    source.notes = [note for part in parts for note in part.notes]
    source.textual, source.delimiter, source.hint = first.textual, first.delimiter, first.hint
    return source


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
