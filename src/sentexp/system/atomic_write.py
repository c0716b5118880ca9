"""Files that are whole or absent: written under another name first, and on the disk before they get their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def unfinished_name(path: Path) -> Path:
    """Return the name that a file has until it is whole."""
    return path.with_name(f"{path.name}.partial")


def put_in_place(path: Path) -> None:
    """Give a file that was written under its unfinished name its own name.

    The disk has all of it by then, so that a power cut leaves this file or the one before, and no half of either.
    """
    unfinished = unfinished_name(path)
    with unfinished.open("r+b") as written:
        os.fsync(written.fileno())
    unfinished.replace(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of an unfinished file beside this one, which it replaces at the end; an error removes it."""
    unfinished = unfinished_name(path)
    try:
        yield unfinished
        put_in_place(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file that is whole or absent, texts as UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
