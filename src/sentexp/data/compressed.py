"""Compressed files, as plain ones for as long as they are read."""

import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sentexp.errors import UserError, first_line, require

STREAMS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Endings of compressed files, and Arrow's names of what undoes them."""
COMPRESSED = (*STREAMS, ".xz", ".zip")
BLOCK = 1 << 20
SUSPICIOUS = 1 << 30
"""Bytes above which a file must not be more than `RATIO` times what it was compressed to."""
RATIO = 200


def inner_name(file: Path) -> str:
    """Return the name of a file without the ending of what compresses it; that of a zip is known when it is open."""
    return file.stem if file.suffix.lower() in COMPRESSED else file.name


@contextmanager
def decompressed(file: Path, key: str) -> Iterator[tuple[Path, str]]:
    """Yield a plain file and its ending in lower case: the file itself, or a temporary one of what it holds.

    Args:
        file: that may be compressed.
        key: names the file, as it is typed.

    Raises:
        UserError: it is damaged, holds no file or several, or more than its size or this disk allows.
    """
    if file.suffix.lower() not in COMPRESSED:
        yield file, file.suffix.lower()
        return
    with tempfile.TemporaryDirectory(prefix="sentexp-") as folder:
        plain = Path(folder) / "plain"
        try:
            with _opened(file, key) as (stream, name), plain.open("wb") as out:
                _copy(stream, out, file, key)
        # RuntimeError: a zip with a password, or compressed in a way that Python does not know
        except (OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
            reason = first_line(error)
            raise UserError(f"{key} cannot be decompressed ({reason}): fetch it again, or decompress it.") from None
        yield plain, Path(name).suffix.lower()


@contextmanager
def _opened(file: Path, key: str) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a stream of what a compressed file holds, and its name."""
    import pyarrow as pa

    ending = file.suffix.lower()
    if ending == ".zip":
        with zipfile.ZipFile(file) as archive:
            member = _only_member(archive, key)
            with archive.open(member) as stream:
                yield stream, member.filename
    elif ending == ".xz":
        with lzma.open(file) as stream:
            yield stream, inner_name(file)
    else:
        with pa.input_stream(str(file), compression=STREAMS[ending]) as stream:
            yield stream, inner_name(file)


def _only_member(archive: zipfile.ZipFile, key: str) -> zipfile.ZipInfo:
    """Return the only file of an archive; what systems add beside it does not count."""
    members = [member for member in archive.infolist() if not member.is_dir() and "__MACOSX" not in member.filename]
    require(
        len(members) == 1,
        f"{key} holds {len(members)} files ({', '.join(member.filename for member in members[:5])}): a zip is read if "
        "it holds one; unpack it, and name the folder or one of the files.",
    )
    return members[0]


def _copy(stream: Any, out: IO[bytes], file: Path, key: str) -> None:
    """Copy a stream, as far as it can be what it says: a few bytes may stand for more than any disk holds."""
    compressed, size = file.stat().st_size, 0
    free = shutil.disk_usage(Path(out.name).parent).free
    while block := stream.read(BLOCK):
        size += len(block)
        require(
            size <= max(SUSPICIOUS, RATIO * compressed),
            f"{key} holds more than {RATIO} times its {compressed:,} bytes: such a file is made to fill disks; "
            "decompress it yourself if you trust it.",
        )
        require(
            size < free, f"{key} holds more than the {free >> 20:,} MiB that are free for it: set TMPDIR, or free some."
        )
        out.write(block)
