"""The output of `predict`: written beside its name, chunk by chunk, and renamed when it is whole.

After every chunk a small state file says how far it is, so that the same command goes on after a kill: what stands
behind that place was written by a chunk that did not end, and is cut off.
"""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sentexp.errors import UserError, require
from sentexp.inference.readers import STANDARD
from sentexp.inference.row_formats import Chunk, arrow, cells, objects

if TYPE_CHECKING:
    import pyarrow as pa

Said = list[list[Any]]
"""What is said of rows: for each the label and the probabilities, null where there is no text."""


class Output:
    """Where rows go with what is said of them; `rows` were there already when it was opened.

    Args:
        columns: of the input.
        added: the columns after them: label and probabilities.
    """

    rows = 0
    empty = 0
    """Rows without a text among them."""

    def __init__(self, columns: Sequence[str], added: Sequence[str]) -> None:
        self.columns, self.added = list(columns), list(added)

    def count(self, said: Said) -> None:
        """Count rows that are written."""
        self.rows += len(said)
        self.empty += sum(row[0] is None for row in said)

    def write(self, chunk: Chunk, said: Said) -> None:
        """Add a chunk."""
        raise NotImplementedError

    def finish(self) -> None:
        """Put the output in its place."""

    def close(self) -> None:
        """Let go of what is open; what is not finished stays, to be gone on with."""


class StandardOutput(Output):
    """Rows to standard output; nothing is kept of it."""

    def __init__(self, form: str, columns: Sequence[str], added: Sequence[str], delimiter: str) -> None:
        super().__init__(columns, added)
        self.text = Text(form, columns, added, delimiter)

    def write(self, chunk: Chunk, said: Said) -> None:
        """Write a chunk."""
        sys.stdout.buffer.write(self.text.encode(chunk, said, header=self.rows == 0))
        sys.stdout.buffer.flush()
        self.count(said)

    def finish(self) -> None:
        """Write the header, where there were no rows."""
        if self.rows == 0:
            sys.stdout.buffer.write(self.text.header())
            sys.stdout.buffer.flush()


class FileOutput(Output):
    """Rows to a file.

    Args:
        file: its name when it is whole.
        form: csv, tsv, jsonl or parquet.
        columns: of the input.
        added: the columns after them.
        delimiter: of CSV.
        task: a digest of input, run and keys: only the same task goes on; None never does.
        schema: of an input of Arrow tables, for Parquet without rows.

    Raises:
        UserError: another process is at it.
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
        self.file, self.form, self.task, self.schema = file, form, task, schema
        self.partial, self.state = (file.with_name(f"{file.name}.{word}") for word in ("partial", "state.json"))
        self.text = Text(form, columns, added, delimiter)
        self.lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(f"output={file} is being written by another process: wait for it.") from None
        except OSError as error:
            raise UserError(f"output={file} cannot be written ({error.strerror}): name a file that can.") from None
        self.stream: IO[bytes] | None = None
        self.size = self._take_up()

    def _take_up(self) -> int:
        """Return where the partial output ends, in bytes or parts, once it holds what the state says and no more."""
        try:
            state = json.loads(self.state.read_text())
        except (FileNotFoundError, ValueError):
            state = {}
        size = int(state.get("size", 0))
        goes_on = self.task is not None and state.get("task") == self.task and self._holds(size)
        if not goes_on:
            self._remove()
            size = 0
        self.rows, self.empty = (int(state[key]) if goes_on else 0 for key in ("rows", "empty"))
        if self.form == "parquet":
            self.partial.mkdir(exist_ok=True)
            return size
        self.stream = self.partial.open("r+b" if goes_on else "wb")
        self.stream.truncate(size)
        self.stream.seek(size)
        return size

    def _holds(self, size: int) -> bool:
        if self.form == "parquet":
            return all(self._part(number).is_file() for number in range(size))
        return self.partial.is_file() and self.partial.stat().st_size >= size

    def _part(self, number: int) -> Path:
        return self.partial / f"{number:07}.parquet"

    def write(self, chunk: Chunk, said: Said) -> None:
        """Write a chunk, and after it how far the output is."""
        if self.stream is None:
            self._write_part(chunk, said)
            self.size += 1
        else:
            self.stream.write(self.text.encode(chunk, said, header=self.rows == 0))
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.size = self.stream.tell()
        self.count(said)
        if self.task is not None:
            unfinished = self.state.with_name(f"{self.state.name}.partial")
            facts = {"task": self.task, "rows": self.rows, "empty": self.empty, "size": self.size}
            unfinished.write_text(json.dumps(facts))
            unfinished.replace(self.state)

    def _write_part(self, chunk: Chunk, said: Said) -> None:
        from pyarrow import parquet

        table = _with_said(arrow(chunk.rows, self.columns), self.added, said)
        unfinished = self.partial / "unfinished"
        parquet.write_table(table, unfinished, compression="zstd")
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())
        unfinished.replace(self._part(self.size))

    def finish(self) -> None:
        """Rename the output to its name, and leave nothing beside it."""
        if self.stream is not None:
            if self.rows == 0:
                self.stream.write(self.text.header())
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            self.partial.replace(self.file)
        else:
            self._join_parts().replace(self.file)
        self._remove()

    def _join_parts(self) -> Path:
        """Write all parts into one file, and return it."""
        from pyarrow import parquet

        whole = self.partial / "whole"
        first = None if self.size == 0 else parquet.read_schema(self._part(0))
        if first is None:
            assert self.schema is not None, "an input of JSON Lines has rows"
            first = _with_said(self.schema.empty_table(), self.added, []).schema
        with parquet.ParquetWriter(whole, first, compression="zstd") as writer:
            for number in range(self.size):
                writer.write_table(parquet.read_table(self._part(number), schema=first))
        return whole

    def _remove(self) -> None:
        if self.partial.is_dir():
            shutil.rmtree(self.partial)
        for file in (self.partial, self.state):
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()
        if self.rows == 0:
            self._remove()
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)


class Text:
    """Rows as bytes of CSV, TSV or JSON Lines, in UTF-8."""

    def __init__(self, form: str, columns: Sequence[str], added: Sequence[str], delimiter: str) -> None:
        self.form, self.columns, self.added = form, list(columns), list(added)
        self.delimiter = delimiter if form == "csv" else "\t"

    def header(self) -> bytes:
        """Return the line of column names; JSON Lines has none."""
        return b"" if self.form == "jsonl" else self._lines([[*self.columns, *self.added]])

    def encode(self, chunk: Chunk, said: Said, header: bool) -> bytes:
        """Return the rows of a chunk, under the header where that is wanted."""
        start = self.header() if header else b""
        if self.form != "jsonl":
            known = cells(chunk.rows, self.columns)
            return start + self._lines([[*row, *more] for row, more in zip(known, said, strict=True)])
        lines = []
        for row, more in zip(objects(chunk.rows), said, strict=True):
            taken = next((name for name in self.added if name in row), None)
            require(
                taken is None,
                f"A row has the name {taken!r} already: add another beginning to the new names with prefix=predicted_.",
            )
            lines.append(json.dumps(row | dict(zip(self.added, more, strict=True)), ensure_ascii=False, default=str))
        return "".join(f"{line}\n" for line in lines).encode()

    def _lines(self, rows: list[list[Any]]) -> bytes:
        shown = [["" if value is None else value for value in row] for row in rows]
        if self.form == "csv":
            stream = io.StringIO()
            csv.writer(stream, delimiter=self.delimiter, lineterminator="\n").writerows(shown)
            return stream.getvalue().encode()
        lines = [[str(value) for value in row] for row in shown]
        broken = next((value for row in lines for value in row if any(sign in value for sign in "\t\n")), None)
        require(
            broken is None,
            f"A value holds a tab or a line break ({(broken or '')[:40]!r}), which TSV cannot write: name an output "
            "that ends in .csv, .jsonl or .parquet.",
        )
        return "".join("\t".join(row) + "\n" for row in lines).encode()


def _with_said(rows: "pa.Table", added: Sequence[str], said: Said) -> "pa.Table":
    import pyarrow as pa

    columns: list[Sequence[Any]] = list(zip(*said, strict=True)) if said else [[] for _ in added]
    for place, (name, values) in enumerate(zip(added, columns, strict=True)):
        rows = rows.append_column(name, pa.array(values, pa.string() if place == 0 else pa.float32()))
    return rows


def open_output(
    path: str, form: str, columns: Sequence[str], added: Sequence[str], delimiter: str, task: str | None, schema: Any
) -> Output:
    """Return where rows go: a file, or standard output; see `FileOutput`."""
    if path == STANDARD:
        return StandardOutput(form, columns, added, delimiter)
    return FileOutput(Path(path).expanduser(), form, columns, added, delimiter, task, schema)
