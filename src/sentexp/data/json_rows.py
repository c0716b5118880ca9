"""JSON Lines, or one JSON array of objects, read in blocks of rows."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sentexp.data.delimited import Keys
from sentexp.data.encodings import text_encoding, wrong_encoding
from sentexp.errors import UserError, require

Rows = list[dict[str, Any]]


class JsonRows:
    """The rows of a JSON file; `columns` are the names that the rows so far have, in the order of their appearance.

    Args:
        file: to read.
        encoding: null is UTF-8, or what a byte order mark says.
        keys: of the configuration, for the sentences.
        name: of the file, in the sentences.
    """

    def __init__(self, file: Path, encoding: str | None, keys: Keys, name: str) -> None:
        self.file, self.keys, self.name = file, keys, name
        self.encoding = text_encoding(file, encoding)
        self.columns: dict[str, None] = {}

    def blocks(self, rows: int) -> Iterator[Rows]:
        """Yield the rows, so many at one time.

        Raises:
            UserError: something is not JSON, not an object, or not in the encoding.
        """
        numbered = enumerate(self._values(), start=1)
        while block := list(islice(numbered, rows)):
            checked = [self._checked(value, is_escaped, number) for number, (value, is_escaped) in block]
            for row in checked:
                if not row.keys() <= self.columns.keys():
                    self.columns |= dict.fromkeys(row)
            yield checked

    def count(self) -> int | None:
        """Return the number of rows of JSON Lines; None of an array.

        Raises:
            UserError: it is not in the encoding.
        """
        try:
            with self.file.open(encoding=self.encoding) as stream:
                count = sum(not line.isspace() for line in stream)
        except UnicodeError:
            raise wrong_encoding(self.file, self.encoding, self.keys.encoding, self.name) from None
        return None if self._is_array() else count

    def _is_array(self) -> bool:
        with self.file.open(encoding=self.encoding) as stream:
            start = stream.read(1)
            while start.isspace():
                start = stream.read(1)
            return start == "["

    def _values(self) -> Iterator[tuple[Any, bool]]:
        """Yield what stands for a row, and whether its text may hold half of a surrogate pair."""
        number = 0
        try:
            with self.file.open(encoding=self.encoding) as stream:
                if self._is_array():
                    text = stream.read()
                    yield from ((value, "\\u" in text) for value in json.loads(text))
                    return
                for number, line in enumerate(stream, start=1):  # noqa: B007 (the error tells it)
                    if not line.isspace():
                        yield json.loads(line), "\\u" in line
        except UnicodeError:
            raise wrong_encoding(self.file, self.encoding, self.keys.encoding, self.name) from None
        except json.JSONDecodeError as error:
            raise UserError(
                f"Line {number or error.lineno} of {self.name} is not JSON ({error.msg}): fix it."
            ) from None
        except RecursionError:
            where = f"Line {number} of {self.name}" if number else self.name
            raise UserError(f"{where} is nested too deep to be read as JSON: fix it.") from None

    def _checked(self, row: Any, is_escaped: bool, number: int) -> dict[str, Any]:
        require(isinstance(row, dict), f"Row {number} of {self.name} is not a JSON object with names and values.")
        try:
            if is_escaped:
                json.dumps(row, ensure_ascii=False).encode()
        except RecursionError:
            raise UserError(f"Row {number} of {self.name} is nested too deep to be read as JSON: fix it.") from None
        except UnicodeEncodeError:
            raise UserError(
                f"Row {number} of {self.name} holds half of a surrogate pair, which is not a character: fix it."
            ) from None
        checked: dict[str, Any] = row
        return checked
