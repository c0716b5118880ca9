"""The output of `predict`: a part for each chunk, joined and renamed to its name when all are there.

The parts are in a folder beside the output. A small state file there says how many are written, so that the same
command resumes after a kill: the part that was being written is written again.
"""

import csv
import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sentexp.errors import UserError, require
from sentexp.inference.answers import LABELS
from sentexp.inference.readers import STANDARD
from sentexp.inference.row_formats import Chunk, as_arrow, as_objects, as_text, as_texts
from sentexp.system.atomic_write import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

END = "\r\n"
"""What Python's CSV writer ends rows with, as it quotes values that hold either sign; files get the second alone."""
Predictions = list[list[Any]]
"""For each row the columns of `sentexp.inference.answers`, null where there is no text."""


class Output(ABC):
    """Where rows go with their predictions; `rows` were there already when it was opened.

    Args:
        columns: of the input.
        added: the columns after them: label and probabilities.
    """

    rows = 0
    empty = 0
    """Rows without a text among them."""

    def __init__(self, columns: Sequence[str], added: Sequence[str]) -> None:
        self.columns, self.added = list(columns), list(added)

    def require_names(self, form: str) -> None:
        """Refuse columns of one name where a form has one value for each name."""
        twice = list(dict.fromkeys(name for name in self.columns if self.columns.count(name) > 1))
        require(
            not twice or form in ("csv", "tsv"),
            f"The input has several columns named {', '.join(twice)}, and {form} holds one of each name: rename all "
            "but one, or write output=<file>.csv.",
        )

    def count(self, predictions: Predictions) -> None:
        """Count rows that are written."""
        self.rows += len(predictions)
        self.empty += sum(row[0] is None for row in predictions)

    @abstractmethod
    def write(self, chunk: Chunk, predictions: Predictions) -> None:
        """Add a chunk."""

    @abstractmethod
    def finish(self) -> None:
        """Put the output in its place."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open; what is not finished stays, so that a later start can resume it."""


class StandardOutput(Output):
    """Rows to standard output; nothing is kept of it."""

    def __init__(self, form: str, columns: Sequence[str], added: Sequence[str], delimiter: str) -> None:
        super().__init__(columns, added)
        self.require_names(form)
        self.text = TextRows(form, columns, added, delimiter)

    def write(self, chunk: Chunk, predictions: Predictions) -> None:
        """Write a chunk."""
        sys.stdout.buffer.write((self.text.header() if self.rows == 0 else b"") + self.text.encode(chunk, predictions))
        sys.stdout.buffer.flush()
        self.count(predictions)

    def finish(self) -> None:
        """Write the header, where there were no rows."""
        if self.rows == 0:
            sys.stdout.buffer.write(self.text.header())
            sys.stdout.buffer.flush()

    def close(self) -> None:
        """Leave standard output open: it is the process's."""


class FileOutput(Output):
    """Rows to a file.

    Args:
        file: its name when it is whole.
        form: csv, tsv, jsonl or parquet.
        columns: of the input.
        added: the columns after them.
        delimiter: of CSV.
        task: a digest of input, run and keys: only the same task resumes; None never does.
        schema: of an input of Arrow tables, for Parquet without rows.

    Raises:
        UserError: another process writes it.
    """

    def __init__(
        self,
        file: Path,
        form: str,
        columns: Sequence[str],
        added: Sequence[str],
        delimiter: str,
        task: str | None,
        schema: "pa.Schema | None" = None,
    ) -> None:
        super().__init__(columns, added)
        self.require_names(form)
        self.file, self.form, self.task, self.schema = file, form, task, schema
        self.folder = file.with_name(f"{file.name}.partial")
        self.state = self.folder / "state.json"
        self.text = TextRows(form, columns, added, delimiter)
        self.lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(f"output={file} is being written by another process: wait for it.") from None
        except OSError as error:
            raise UserError(f"output={file} cannot be written ({error.strerror}): name a file that can.") from None
        self.parts = self._resume()

    def _resume(self) -> int:
        """Return how many parts of the same task are there; without them the folder is made anew."""
        try:
            state = json.loads(self.state.read_text())
        except (OSError, ValueError):
            state = {}
        if self.task is not None and state.get("task") == self.task:
            parts = int(state["parts"])
            if all(self._part(number).is_file() for number in range(parts)):
                self.rows, self.empty = int(state["rows"]), int(state["empty"])
                return parts
        self._remove()
        self.folder.mkdir()
        return 0

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:07}.{self.form}"

    def write(self, chunk: Chunk, predictions: Predictions) -> None:
        """Write a chunk as a part, and after it how far the output is."""
        from pyarrow import parquet

        unfinished = self.folder / "unfinished"
        with unfinished.open("wb") as stream:
            if self.form == "parquet":
                table = _with_predictions(as_arrow(chunk.rows, self.columns), self.added, predictions)
                parquet.write_table(table, stream, compression="zstd")
            else:
                stream.write(self.text.encode(chunk, predictions))
            _flush_to_disk(stream)
        unfinished.replace(self._part(self.parts))
        self.parts += 1
        self.count(predictions)
        if self.task is not None:
            facts = {"task": self.task, "rows": self.rows, "empty": self.empty, "parts": self.parts}
            write_atomic(self.state, json.dumps(facts))

    def finish(self) -> None:
        """Join the parts, give the output its name, and leave nothing beside it."""
        joined = self.folder / "joined"
        with joined.open("wb") as stream:
            if self.form == "parquet":
                self._join_parquet(stream)
            else:
                stream.write(self.text.header())
                for number in range(self.parts):
                    with self._part(number).open("rb") as part:
                        shutil.copyfileobj(part, stream)
            _flush_to_disk(stream)
        joined.replace(self.file)
        self._remove()

    def _join_parquet(self, stream: IO[bytes]) -> None:
        from pyarrow import parquet

        if self.parts:
            schema = parquet.read_schema(self._part(0))
        else:
            assert self.schema is not None, "an input of JSON has rows"
            schema = _with_predictions(self.schema.empty_table(), self.added, []).schema
        with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for number in range(self.parts):
                writer.write_table(parquet.read_table(self._part(number), schema=schema))

    def _remove(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.folder.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process write."""
        if self.rows == 0:
            self._remove()
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)


def _flush_to_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


class _Written(list[str]):
    """The rows that a writer of CSV has written."""

    def write(self, row: str) -> None:
        """Add a row."""
        self.append(row)


class TextRows:
    """Rows as bytes of CSV, TSV or JSON Lines, in UTF-8."""

    def __init__(self, form: str, columns: Sequence[str], added: Sequence[str], delimiter: str) -> None:
        self.form, self.columns, self.added = form, list(columns), list(added)
        self.delimiter = delimiter if form == "csv" else "\t"

    def header(self) -> bytes:
        """Return the line of column names; JSON Lines has none."""
        return b"" if self.form == "jsonl" else self._lines([[*self.columns, *self.added]])

    def encode(self, chunk: Chunk, predictions: Predictions) -> bytes:
        """Return the rows of a chunk."""
        if self.form != "jsonl":
            rows = as_texts(chunk.rows, self.columns)
            return self._lines([[*row, *more] for row, more in zip(rows, predictions, strict=True)])
        lines = []
        for row, more in zip(as_objects(chunk.rows), predictions, strict=True):
            taken = next((name for name in self.added if name in row), None)
            require(
                taken is None,
                f"A row has the name {taken!r} already: add another beginning to the new names with prefix=predicted_.",
            )
            lines.append(json.dumps(row | dict(zip(self.added, more, strict=True)), ensure_ascii=False, default=str))
        return "".join(f"{line}\n" for line in lines).encode()

    def _lines(self, rows: list[list[Any]]) -> bytes:
        shown = [["" if value is None else _written(value) for value in row] for row in rows]
        if self.form == "csv":
            written = _Written()
            csv.writer(written, delimiter=self.delimiter, lineterminator=END).writerows(shown)
            return "".join(f"{row.removesuffix(END)}\n" for row in written).encode()
        lines = [[str(value) for value in row] for row in shown]
        broken = next((value for row in lines for value in row if any(sign in value for sign in "\t\r\n")), None)
        require(
            broken is None,
            f"A value holds a tab or a line break ({(broken or '')[:40]!r}), which TSV cannot write: name an output "
            "that ends in .csv, .jsonl or .parquet.",
        )
        return "".join("\t".join(row) + "\n" for row in lines).encode()


def _written(value: Any) -> Any:
    """Return a value as CSV takes it: a list in JSON."""
    return as_text(value) if isinstance(value, list) else value


def _with_predictions(rows: "pa.Table", added: Sequence[str], predictions: Predictions) -> "pa.Table":
    import pyarrow as pa

    columns: list[Sequence[Any]] = list(zip(*predictions, strict=True)) if predictions else [[] for _ in added]
    for place, (name, values) in enumerate(zip(added, columns, strict=True)):
        is_label = place == 0 and len(added) > 1  # a score is alone
        answer = pa.list_(pa.string()) if name.endswith(LABELS) else pa.string()
        rows = rows.append_column(name, pa.array(values, answer if is_label else pa.float32()))
    return rows


def open_output(
    path: str, form: str, columns: Sequence[str], added: Sequence[str], delimiter: str, task: str | None, schema: Any
) -> Output:
    """Return where rows go: a file, or standard output; see `FileOutput`."""
    if path == STANDARD:
        return StandardOutput(form, columns, added, delimiter)
    return FileOutput(Path(path).expanduser(), form, columns, added, delimiter, task, schema)
