"""CRC-32 of what the cache keeps: bytes that have changed on the disk are noticed, and their file is made again."""

import json
import zlib
from pathlib import Path

CHECKSUMS = "checksums.json"
BLOCK = 1 << 20
"""Bytes that are read at one time."""


def append_checksum(file: Path) -> None:
    """Write the CRC-32 of a file behind its bytes."""
    checksum = _crc32(file)
    with file.open("ab") as out:
        out.write(checksum.to_bytes(4, "big"))


def without_checksum(content: memoryview) -> memoryview | None:
    """Return the bytes of a file before the CRC-32 behind them; None if it is not theirs."""
    before, checksum = content[:-4], bytes(content[-4:])
    return before if zlib.crc32(before).to_bytes(4, "big") == checksum else None


def write_checksums(folder: Path) -> None:
    """Write the CRC-32 of each file of a folder into a file beside them."""
    (folder / CHECKSUMS).write_text(json.dumps({file.name: _crc32(file) for file in sorted(folder.iterdir())}))


def is_unchanged(folder: Path) -> bool:
    """Tell whether a folder's files are those that its checksums were written of, and none is missing."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_bytes())
        return all(_crc32(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError):  # no such file, or it is damaged itself
        return False


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
