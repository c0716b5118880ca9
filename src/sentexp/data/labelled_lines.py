"""Lines in fastText's form, `__label__positive a warm film`, as the columns text and label."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.data.delimited import Keys
from sentexp.data.encodings import text_encoding, wrong_encoding
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa

LABEL = "__label__"
COLUMNS = ("text", "label")
BLOCK_ROWS = 1 << 13


class LabelledLines:
    """The lines of a file; blank ones are skipped.

    Args:
        file: to read.
        encoding: null is UTF-8, or what a byte order mark says.
        keys: of the configuration, for the sentences.
        name: of the file, in the sentences.
        unlabelled: let a line be a text without a label.
        several: read any number of labels before a text, as a list in JSON.
    """

    def __init__(
        self,
        file: Path,
        encoding: str | None,
        keys: Keys,
        name: str,
        unlabelled: bool = False,
        several: bool = False,
    ) -> None:
        self.file, self.keys, self.name, self.unlabelled, self.several = file, keys, name, unlabelled, several
        self.encoding = text_encoding(file, encoding)

    def tables(self) -> "Iterator[pa.Table]":
        """Yield the rows block by block, as columns of `large_string`.

        Raises:
            UserError: a line without a label, with several, or not in the encoding.
        """
        import pyarrow as pa

        rows = self._rows()
        while block := list(islice(rows, BLOCK_ROWS)):
            columns = [pa.array(values, pa.large_string()) for values in zip(*block, strict=True)]
            yield pa.table(columns, names=list(COLUMNS))

    def _rows(self) -> Iterator[tuple[str, str | None]]:
        try:
            with self.file.open(encoding=self.encoding, newline="\n") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield self._divided(line.strip("\r\n"), number)
        except UnicodeError:
            raise wrong_encoding(self.file, self.encoding, self.keys.encoding, self.name) from None

    def _divided(self, line: str, number: int) -> tuple[str, str | None]:
        if self.several:
            labels, text = [], line
            while text.startswith(LABEL):
                label, _, text = text.partition(" ")
                labels.append(label.removeprefix(LABEL))
            return text, json.dumps(labels, ensure_ascii=False)
        label, _, text = line.partition(" ")
        if self.unlabelled and not label.startswith(LABEL):
            return line, None
        require(
            label.startswith(LABEL) and not text.lstrip().startswith(LABEL),
            f"Line {number} of {self.name} reads {line.strip()[:60]!r}: it must be one {LABEL}<label> and its text.",
        )
        return text, label.removeprefix(LABEL)
