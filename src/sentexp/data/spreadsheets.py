"""Spreadsheets, .xlsx and .ods: one sheet, read row by row as columns of strings.

Both are zips of XML. A zip names the size of each file in it and is never read further, so what such a file can take is
known before it is read; what repeated rows and shared texts add to that is counted as it is read.
"""

import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.data.delimited import Keys, TextFormat, first_row_hint
from sentexp.data.open_document import LARGEST, open_document_rows, open_document_sheets
from sentexp.errors import UserError, first_line, require

if TYPE_CHECKING:
    import pyarrow as pa

SPREADSHEETS = (".xlsx", ".ods")
MOST_ROWS = 1 << 20
"""What both formats allow."""
BLOCK_ROWS = 1 << 13

Row = list[str | None]


class Spreadsheet:
    """A sheet whose first row that is not empty names the columns, unless `form` does.

    `names` are those of its columns, `skipped` counts the rows that were left out so far, and `notes` are sentences for
    the person at the keyboard.

    Args:
        file: to read.
        form: names the sheet, and the columns of one without a header.
        ending: .xlsx or .ods.
        keys: of the configuration, for the sentences.
        name: of the file, in the sentences.

    Raises:
        UserError: it is damaged, too large, has several sheets or not the one that is wanted, or no header.
    """

    def __init__(self, file: Path, form: TextFormat, ending: str, keys: Keys, name: str) -> None:
        self.file, self.form, self.ending, self.keys, self.name = file, form, ending, keys, name
        self.skipped = 0
        self.notes: list[str] = []
        self._check_size()
        self.sheet = self._choose_sheet()
        first = next(self._rows(), None)
        require(first is not None, f"{name} has no header: the first row of its sheet must name the columns.")
        assert first is not None
        columns = form.columns
        require(
            not columns or len(first) <= len(columns),
            f"{keys.columns} names {len(columns)} columns, and the first row of {name} has {len(first)}: name as many, "
            "in their order.",
        )
        require(
            not columns or first != columns,
            f"{keys.columns} names the columns of {name}, whose first row does so already: leave it out.",
        )
        self.names = columns or [value or "" for value in first]

    def tables(self, wanted: Sequence[str] | None = None) -> "Iterator[pa.Table]":
        """Yield the rows block by block, in their order: these columns as `large_string`, or all of them.

        Raises:
            UserError: a row has more values than there are columns, or the rows are larger than any sheet.
        """
        import pyarrow as pa

        places = range(len(self.names)) if wanted is None else [self.names.index(name) for name in wanted]
        names = [self.names[place] for place in places]
        rows = self._fitting_rows()
        while block := list(islice(rows, BLOCK_ROWS)):
            columns = [[row[place] if place < len(row) else None for row in block] for place in places]
            yield pa.table([pa.array(column, pa.large_string()) for column in columns], names=names)

    def header_hint(self) -> str:
        """Return a hint when the header looks as if it were a row."""
        return "" if self.form.columns else first_row_hint(self.names, self.keys)

    def _fitting_rows(self) -> Iterator[Row]:
        """Yield the rows below the header that have no more values than it."""
        characters = 0
        for number, row in enumerate(islice(self._rows(), 0 if self.form.columns else 1, None), 1):
            characters += sum(len(value) for value in row if value)
            require(characters <= LARGEST, self._too_large(f"rows of more than {LARGEST >> 20:,} million characters"))
            if len(row) <= len(self.names):
                yield row
                continue
            require(
                self.form.skip_ragged,
                f"Row {number} of {self.name} has {len(row)} values, and there are {len(self.names)} columns: fix the "
                f"row{self.keys.skip}.",
            )
            self.skipped += 1

    def _rows(self) -> Iterator[Row]:
        """Yield the rows that are not empty, as far as they have values."""
        read = open_document_rows if self._open_document else xlsx_rows
        try:
            for number, row in enumerate(read(self.file, self.sheet)):
                require(number < MOST_ROWS, self._too_large(f"more than {MOST_ROWS:,} rows"))
                while row and row[-1] in (None, ""):
                    row.pop()
                if row:
                    yield row
        except UserError:
            raise
        except Exception as error:  # whatever a parser makes of a damaged file
            raise self._unreadable(error) from None

    def _choose_sheet(self) -> str:
        try:
            sheets = (open_document_sheets if self._open_document else xlsx_sheets)(self.file)
        except UserError:
            raise
        except Exception as error:
            raise self._unreadable(error) from None
        wanted, present = self.form.sheet, ", ".join(sheets)
        require(bool(sheets), f"{self.name} has no sheet with rows: save it again.")
        require(
            wanted is not None or len(sheets) == 1,
            f"{self.name} has {len(sheets)} sheets ({present}): name one with {self.keys.sheet}=<name>.",
        )
        require(
            wanted is None or wanted in sheets,
            f"{self.keys.sheet}={wanted} is not a sheet of {self.name}: it has {present}.",
        )
        return wanted or sheets[0]

    def _check_size(self) -> None:
        try:
            with zipfile.ZipFile(self.file) as archive:
                size = sum(member.file_size for member in archive.infolist())
                is_workbook = "xl/workbook.xml" in archive.namelist()  # pandas gives it the name of .ods as well
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise self._unreadable(error) from None
        self._open_document = not is_workbook
        require(size <= LARGEST, self._too_large(f"{size >> 20:,} MiB, unpacked, of at most {LARGEST >> 20:,}"))

    def _too_large(self, what: str) -> str:
        return f"{self.name} holds {what}: save the sheet as CSV, which may be of any size."

    def _unreadable(self, error: Exception) -> UserError:
        cause = error.__cause__ or error
        reason = first_line(cause)
        return UserError(f"{self.name} cannot be read as {self.ending} ({reason}): save it again, or as CSV.")


def xlsx_sheets(file: Path) -> list[str]:
    """Return the names of the sheets that have cells."""
    with file.open("rb") as stream:
        return [sheet.title for sheet in _workbook(stream).worksheets]


def xlsx_rows(file: Path, sheet: str) -> Iterator[Row]:
    """Yield the rows of a sheet, empty ones as well; of a formula the value that was last computed."""
    with file.open("rb") as stream:
        rows = _workbook(stream)[sheet]
        rows.reset_dimensions()  # what the file says of them may be wrong
        for row in rows.iter_rows(values_only=True):
            yield [_as_string(value) for value in row]


def _workbook(stream: Any) -> Any:
    try:
        import defusedxml  # noqa: F401 (openpyxl then reads with it)
        from openpyxl import load_workbook
    except ImportError:
        raise UserError(
            "Reading .xlsx needs openpyxl: pip install -c constraints.txt '.[excel]', or save it as CSV."
        ) from None
    return load_workbook(stream, read_only=True, data_only=True, keep_links=False)


def _as_string(value: Any) -> str | None:
    """Return a value of a cell as CSV would have it."""
    if isinstance(value, str):
        return value.replace("_x000D_", "\r")  # how Excel writes that character
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value).removesuffix(".0")
