"""OpenDocument spreadsheets (.ods), as OpenDocument 1.3 (part 3, sections 6 and 9) has them.

They are read as a stream of XML, one row at a time: the document is never in memory as a whole. Entities are refused.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

BLOCK = 1 << 16
LARGEST = 1 << 30
"""Bytes that a spreadsheet may unpack to, and characters that its rows may have."""
MOST_COLUMNS = 1 << 14
"""What the format allows."""
OFFICE = "urn:oasis:names:tc:opendocument:xmlns:office:1.0 "
TABLE = "urn:oasis:names:tc:opendocument:xmlns:table:1.0 "
TEXT = "urn:oasis:names:tc:opendocument:xmlns:text:1.0 "
CELLS = (TABLE + "table-cell", TABLE + "covered-table-cell")
ASIDE = (OFFICE + "annotation", TABLE + "shapes")
"""Parts of a cell or a sheet that are not its text."""
TYPED = ("value", "boolean-value", "date-value")
"""Attributes that hold the value of a cell; else its paragraphs are its text."""


def open_document_sheets(file: Path) -> list[str]:
    """Return the names of the sheets."""
    names: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == TABLE + "table" and TABLE + "name" in attributes:
            names.append(attributes[TABLE + "name"])

    parser = _parser()
    parser.StartElementHandler = start
    for _ in _parsed(file, parser):
        pass
    return names


def open_document_rows(file: Path, sheet: str) -> Iterator[list[str | None]]:
    """Yield the rows of a sheet; a run of empty rows is one."""
    parser = _parser()
    reader = _SheetReader(sheet)
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    for _ in _parsed(file, parser):
        for row, times in reader.rows:
            for _ in range(times if any(row) else 1):
                yield list(row)
        reader.rows.clear()


class _SheetReader:
    """Collects the rows of a sheet, each with how often it is repeated."""

    def __init__(self, sheet: str) -> None:
        self.sheet = sheet
        self.rows: list[tuple[list[str | None], int]] = []
        self._is_inside = False
        self._aside = 0  # elements deep in what is none of the text
        self._row: list[str | None] = []
        self._times = 1
        self._cell: dict[str, str] | None = None
        self._paragraphs: list[list[str]] = []
        self._characters = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self._aside or name in ASIDE:
            self._aside += 1
        elif name == TABLE + "table":
            self._is_inside = attributes.get(TABLE + "name") == self.sheet
        elif not self._is_inside:
            return
        elif name == TABLE + "table-row":
            self._row, self._times = [], int(attributes.get(TABLE + "number-rows-repeated", 1))
        elif name in CELLS:
            self._cell, self._paragraphs = attributes, []
        elif name == TEXT + "p":
            self._paragraphs.append([])
        elif name == TEXT + "s":
            self.characters(" " * min(int(attributes.get(TEXT + "c", 1)), BLOCK))
        elif name in (TEXT + "tab", TEXT + "line-break"):
            self.characters("\t" if name == TEXT + "tab" else "\n")

    def characters(self, text: str) -> None:
        if self._cell is not None and self._paragraphs and not self._aside:
            self._paragraphs[-1].append(text)
            self._characters += len(text)  # a run of blanks is written as their number
            if self._characters > LARGEST:
                raise ValueError("its texts are larger than any sheet")

    def end(self, name: str) -> None:
        if self._aside:
            self._aside -= 1
        elif name == TABLE + "table":
            self._is_inside = False
        elif self._is_inside and name in CELLS and self._cell is not None:
            times = int(self._cell.get(TABLE + "number-columns-repeated", 1))
            self._row += [self._value(self._cell)] * min(times, MOST_COLUMNS - len(self._row))
            self._cell = None
        elif self._is_inside and name == TABLE + "table-row":
            self.rows.append((self._row, self._times))

    def _value(self, cell: dict[str, str]) -> str | None:
        typed = next((cell[OFFICE + key] for key in TYPED if OFFICE + key in cell), None)
        if typed is not None:
            return typed.removesuffix(".0")
        if self._paragraphs:
            return "\n".join("".join(parts) for parts in self._paragraphs)
        return cell.get(OFFICE + "string-value")  # lacks tabs, as attributes do


def _parser() -> Any:
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_entities
    return parser


def _refuse_entities(*_: object) -> None:
    raise ValueError("it declares a document type, which no program writes")


def _parsed(file: Path, parser: Any) -> Iterator[None]:
    """Let a parser read the content of a document, a block at a time."""
    with zipfile.ZipFile(file) as archive, archive.open("content.xml") as stream:
        while block := stream.read(BLOCK):
            parser.Parse(block, False)
            yield
        parser.Parse(b"", True)
        yield
