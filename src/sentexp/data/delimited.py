"""CSV and TSV files, read in blocks through Arrow as columns of strings.

A file is gone through once before: its encoding, its quotation marks and the number of its rows are known before the
first block is read, so that faults are reported at once.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sentexp.data.encodings import detect, first_undecodable, marked_encoding, python_name
from sentexp.errors import UserError, first_line, require

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1 << 24
"""Bytes that are read at one time; no row may be longer."""
LONGEST_FIELD = (1 << 31) - 1
FORMULA = r"^[=+@-][A-Za-z]+\(|^=|^[+@-][^|]*\|.*!"
"""What a spreadsheet takes for a formula, as a pattern that RE2 and Python read alike."""


@dataclass(kw_only=True, slots=True)
class TextFormat:
    """How a file of texts is written; null is what its ending and its bytes say."""

    encoding: str | None = None
    delimiter: str | None = None
    quoting: bool | None = None
    skip_ragged: bool = False
    columns: list[str] = field(default_factory=list)
    """Names of the columns of a file without a header."""
    sheet: str | None = None
    """Of a spreadsheet that has several."""
    named_classes: bool = False
    """Whether the classes of a data set that `datasets` has saved are read by their names."""
    lists: list[str] = field(default_factory=list)
    """Columns whose values may be lists, which are read as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """What sentences about a table call its configuration keys, and what they advise.

    `unquoted` is what to do with a file that does not quote, `ragged` what else with a row that does not fit, `skip`
    the same for a sheet, which nothing divides.
    """

    path: str = "data.path"
    columns: str = "data.columns"
    encoding: str = "data.encoding"
    delimiter: str = "data.delimiter"
    unquoted: str = "pass data.quoting=false if the file does not quote"
    ragged: str = "leave such rows out with data.on_bad_rows=skip"
    sheet: str = "data.sheet"
    skip: str = ", or leave such rows out with data.on_bad_rows=skip"


class Delimited:
    """A CSV or TSV file whose encoding and quotation marks are right.

    `names` are those of its columns, `rows` counts the rows below them, `skipped` those that were left out so far, and
    `notes` are sentences for the person at the keyboard.

    Args:
        file: to read.
        form: how it is written.
        ending: .csv or .tsv, which has no quotation marks unless `form` says so (as GLUE's).
        keys: of the configuration, for the sentences.
        name: of the file, in the sentences.
        whole: read it through; else only its header, and there are no rows.

    Raises:
        UserError: its encoding cannot be detected, a quotation mark is not closed, or there is no header.
    """

    def __init__(self, file: Path, form: TextFormat, ending: str, keys: Keys, name: str, whole: bool = True) -> None:
        self.file, self.keys, self.name = file, keys, name
        self.rows = self.skipped = 0
        self.notes: list[str] = []
        self._first_ragged = ""
        self._header_lines = 0 if form.columns else 1
        is_tsv = ending == ".tsv"
        self.delimiter = form.delimiter or ("\t" if is_tsv else ",")
        self.form = replace(
            form,
            encoding=form.encoding or marked_encoding(file) or "utf-8",
            delimiter=self.delimiter,
            quoting=not is_tsv if form.quoting is None else form.quoting,
        )
        if whole:
            self._read_through(form.encoding or marked_encoding(file))
        self.names, self._blank_lines = self._read_header()

    def tables(self, wanted: Sequence[str] | None = None) -> "Iterator[pa.Table]":
        """Yield the rows block by block, in file order: these columns as `large_string`, or all of them.

        Raises:
            UserError: a row does not fit the header.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        if self.rows == 0:
            return
        names = self.names if wanted is None else list(wanted)
        places = range(len(names)) if wanted is None else [self.names.index(name) for name in names]
        try:
            for batch in arrow_csv.open_csv(self.file, **self._options(places)):
                yield pa.Table.from_batches([batch]).rename_columns(names)
        except (UnicodeError, pa.ArrowInvalid) as error:
            raise self._unreadable(error) from None
        if self.skipped:
            self.notes.append(
                f"{self.name}: {self.skipped:,} rows have not {len(self.names)} columns and were left out."
            )

    def _options(self, places: Iterable[int]) -> dict[str, Any]:
        """Return the options with which Arrow reads the columns at some places."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        unique = [f"{place}" for place in range(len(self.names))]  # columns may have any names, twice as well
        return {
            "read_options": arrow_csv.ReadOptions(
                use_threads=False,  # only so are rows counted
                encoding=self.form.encoding,
                block_size=BLOCK,
                column_names=unique,
                skip_rows=self._blank_lines,
                skip_rows_after_names=self._header_lines,
            ),
            "parse_options": arrow_csv.ParseOptions(
                delimiter=self.delimiter,
                quote_char='"' if self.form.quoting else False,
                newlines_in_values=bool(self.form.quoting),
                invalid_row_handler=self._handle_ragged,
            ),
            "convert_options": arrow_csv.ConvertOptions(
                include_columns=[unique[place] for place in places],
                column_types=dict.fromkeys(unique, pa.large_string()),
                strings_can_be_null=False,
            ),
        }

    def header_hint(self) -> str:
        """Return a hint when the header looks as if it were written with another delimiter, or as if it were a row."""
        if len(self.names) == 1:
            for other in (";", "\t", ",", "|"):
                if other != self.delimiter and other in self.names[0]:
                    written = other.replace("\t", "\\t")
                    return f"; pass \"{self.keys.delimiter}='{written}'\" if that divides them"
        return "" if self.form.columns else first_row_hint(self.names, self.keys)

    def _read_through(self, named: str | None) -> None:
        """Count the rows, in the encoding that is named or in one that is detected."""
        try:
            self.rows = self._check_through()
        except UnicodeError:
            self._detect_encoding(named)
            try:
                self.rows = self._check_through()
            except UnicodeError as error:
                raise self._unreadable(error) from None

    def _detect_encoding(self, named: str | None) -> None:
        """Take the encoding that is likely, and tell of it; one that was named is not replaced."""
        place = first_undecodable(self.file, self.form.encoding or "")
        detected = detect(place.sample)
        require(
            named is None and detected is not None,
            f"Line {place.line} of {self.name} is not {self.form.encoding}: name its encoding with "
            f"{self.keys.encoding}=<name>"
            + (f" ({detected} is likely)." if detected else ", or save the file as UTF-8."),
        )
        self.form.encoding = detected
        self.notes.append(
            f"{self.name} is not UTF-8 (line {place.line}); read as {detected}, which was detected: "
            f"{place.text(detected or '')!r}. If that looks wrong, name its encoding with {self.keys.encoding}."
        )

    def _check_through(self) -> int:
        """Return the number of rows below the header; refuse a quotation mark that would join rows or vanish."""
        if not (self.form.quoting and self._has_quotes()):
            with self.file.open(encoding=python_name(self.form.encoding)) as lines:
                return max(0, sum(line != "\n" for line in lines) - self._header_lines)
        count = 0
        try:
            with self._lines() as lines:
                for row in self._parsed(lines, strict=True):
                    count += bool(row)
        except csv.Error as error:
            raise UserError(
                f"Row {count} of {self.name} has a quotation mark that is not closed, or not doubled inside a text "
                f"({error}): fix it, or {self.keys.unquoted}."
            ) from None
        return max(0, count - self._header_lines)

    def _has_quotes(self) -> bool:
        with self.file.open("rb") as stream:
            return any(b'"' in block for block in iter(lambda: stream.read(BLOCK), b""))

    def _read_header(self) -> tuple[list[str], int]:
        """Return the names of the columns, and the number of blank lines above them."""
        try:
            with self._lines() as lines:
                rows = enumerate(self._parsed(lines, strict=False))
                blank_lines, names = next((number, row) for number, row in rows if row)
        except (StopIteration, csv.Error):
            raise UserError(f"{self.name} has no header: its first line must name the columns.") from None
        columns = self.form.columns
        if columns and names[len(columns) :] == [""]:  # each line ends with what divides columns
            columns = [*columns, ""]
        require(
            not columns or len(names) == len(columns),
            f"{self.keys.columns} names {len(columns)} columns, and the first row of {self.name} has {len(names)} "
            f"({self.delimiter.join(names)[:120]!r}): name as many, in their order.",
        )
        require(
            not columns or names != columns,
            f"{self.keys.columns} names the columns of {self.name}, whose first line does so already: leave it out.",
        )
        return columns or names, blank_lines

    @contextmanager
    def _lines(self) -> Iterator[IO[str]]:
        """Open the file for Python's reader of CSV, which then takes texts of any length."""
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            with self.file.open(encoding=python_name(self.form.encoding), newline="") as lines:
                yield lines
        finally:
            csv.field_size_limit(limit)

    def _parsed(self, lines: IO[str], strict: bool) -> Iterator[list[str]]:
        quoting: Any = csv.QUOTE_MINIMAL if self.form.quoting else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self.delimiter, quoting=quoting, strict=strict)

    def _handle_ragged(self, row: Any) -> str:
        """Say what becomes of a row that has not the columns of the header."""
        self.skipped += 1
        if self.form.skip_ragged:
            return "skip"
        number = row.number - self._header_lines - self._blank_lines  # the header is a row to Arrow
        of = self.keys.columns if self.form.columns else "its header"
        columns = f"{row.actual_columns} of the {row.expected_columns} columns of {of}"
        divided = f"quote texts that hold {self.delimiter!r}"
        if not self.form.quoting:
            divided = f"no text may hold {self.delimiter!r}, as the file does not quote"
        self._first_ragged = (
            f"Row {number} of {self.name} has {columns} ({row.text.strip()[:120]!r}): {divided}, fix the row, or "
            f"{self.keys.ragged}."
        )
        return "error"

    def _unreadable(self, error: Exception) -> UserError:
        if self._first_ragged:
            return UserError(self._first_ragged)
        if "straddling" in str(error):
            return UserError(f"{self.name} has a row of more than {BLOCK >> 20} MiB: shorten it.")
        return UserError(f"{self.name} cannot be read ({first_line(error)}): fix the file.")


LONGEST_NAME = 60


def first_row_hint(names: Sequence[str], keys: Keys) -> str:
    """Return a hint when the names of columns look as if they were values."""
    if not any(_looks_like_data(name) for name in names):
        return ""
    numbered = ",".join(f"name{number}" for number in range(1, len(names) + 1))
    return f"; if that is the first row, name all columns in their order with {keys.columns}=[{numbered}]"


def _looks_like_data(name: str) -> bool:
    """Tell whether the name of a column is rather a value: a number, nothing, or a text."""
    return len(name) > LONGEST_NAME or not name.strip() or name.strip().lstrip("+-").replace(".", "", 1).isdigit()
