"""Tables that are larger than memory should hold: their pieces go to a file without a name, which is mapped."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.system.package_files import cache_dir

if TYPE_CHECKING:
    import pyarrow as pa

LARGE = 1 << 28  # bytes


def concat_or_spill(pieces: Iterable["pa.Table"]) -> "pa.Table":
    """Return the pieces, of which there is at least one, as one table: in memory up to `LARGE`, else on disk."""
    import pyarrow as pa

    held: list[pa.Table] = []
    size, rest = 0, iter(pieces)
    for piece in rest:
        held.append(piece)
        size += piece.nbytes
        if size > LARGE:
            return _spilled(chain(_taken(held), rest))
    return pa.concat_tables(held)


def _taken(held: list["pa.Table"]) -> Iterator["pa.Table"]:
    """Yield the pieces, letting go of each."""
    while held:
        yield held.pop(0)


def _spilled(pieces: Iterator["pa.Table"]) -> "pa.Table":
    """Write the pieces to a file and return them mapped; the file has no name any more and goes with its last user."""
    import pyarrow as pa

    folder = cache_dir() / "spill"
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        first = next(pieces)
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for piece in chain([first], pieces):
                writer.write_table(piece)
        return pa.ipc.open_file(pa.memory_map(name)).read_all()
    finally:
        with suppress(PermissionError):  # where a mapped file cannot be unlinked
            Path(name).unlink()
