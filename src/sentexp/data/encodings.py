"""Encodings of text files: named by a byte order mark, tried line by line, or detected."""

import codecs
from dataclasses import dataclass
from pathlib import Path

from sentexp.errors import UserError

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SAMPLE = 1 << 18
USUAL = "cp1252"
WESTERN = (
    "Unknown", "English", "French", "Spanish", "Portuguese", "Italian", "German", "Dutch", "Danish", "Swedish",
    "Norwegian", "Finnish", "Catalan", "Indonesian",
)  # fmt: skip
TIE = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file stops being in an encoding: the line, counted from 1, and the bytes around."""

    line: int
    line_bytes: bytes
    sample: bytes

    def text(self, encoding: str) -> str:
        """Return the beginning of the line as another encoding reads it."""
        return self.line_bytes.decode(encoding, errors="replace").strip()[:60]


def marked_encoding(file: Path) -> str | None:
    """Return the encoding that a byte order mark names."""
    with file.open("rb") as stream:
        start = stream.read(3)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)


def first_undecodable(file: Path, encoding: str) -> Place:
    """Return the first line that the encoding cannot read."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return Place(number, line, line + stream.read(SAMPLE))
    return Place(1, b"", b"")  # an encoding of several bytes, whose lines do not end where bytes say


def text_encoding(file: Path, named: str | None) -> str:
    """Return the encoding of a file by Python's name: the one that is named, that of its byte order mark, or UTF-8."""
    return python_name(named or marked_encoding(file) or "utf-8") or "utf-8"


def wrong_encoding(file: Path, encoding: str, key: str, name: str) -> UserError:
    """Return what is wrong with a file whose encoding was not guessed.

    Args:
        file: that the encoding cannot read.
        encoding: as Python names it.
        key: of the configuration, which names it.
        name: of the file, in the sentence.
    """
    line = first_undecodable(file, encoding).line
    return UserError(
        f"Line {line} of {name} is not {encoding.removesuffix('-sig')}: name its encoding with {key}=<name>."
    )


def detect(sample: bytes) -> str | None:
    """Return the probable encoding of bytes that are not UTF-8.

    The encodings of one byte a letter differ in so few letters of a western language that the detector confuses them;
    cp1252 is the one that such files have. None if nothing in the bytes speaks for any encoding.
    """
    from charset_normalizer import from_bytes

    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        return None
    near = [m for m in matches if m.coherence > best.coherence - TIE and m.chaos < best.chaos + TIE]
    if any(match.language in WESTERN for match in near) and USUAL in [match.encoding for match in matches]:
        return USUAL
    return best.encoding if best.coherence > 0 else None


def python_name(encoding: str | None) -> str | None:
    """Return the encoding in which Python takes a byte order mark away, as Arrow does."""
    return "utf-8-sig" if encoding == "utf-8" else encoding
