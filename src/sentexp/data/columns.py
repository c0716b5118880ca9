"""Columns that a table must have, and the sentence that refuses one without them."""

import difflib
from collections.abc import Sequence

from sentexp.errors import listed, require

MOST_NAMED = 30
"""Columns that a sentence names."""


def _as_typed(name: str) -> str:
    """Return a name, quoted where it has blanks that are not seen."""
    return name if name == name.strip() and name else f"'{name}'"


def _near(key: str, name: str, present: Sequence[str]) -> str:
    """Return a question that names the column which was probably meant, as it is typed."""
    plain = name.strip().casefold()
    meant = [column for column in present if column.strip().casefold() == plain]
    meant = meant or difflib.get_close_matches(name, present, n=1, cutoff=0.6)
    if not meant:
        return ""
    word = f"{key}={_as_typed(meant[0])}"
    return f' Did you mean "{word}"?' if "'" in word else f" Did you mean {word}?"


def require_columns(present: Sequence[str], columns: dict[str, str], where: object, hint: str = "") -> None:
    """Refuse a table that lacks a wanted column, or has it twice."""
    for key, name in columns.items():
        names = listed([_as_typed(str(column)) for column in present], MOST_NAMED)
        require(
            name in present,
            f"{key}={_as_typed(name)} is not a column of {where}: its columns are {names}{hint}."
            f"{_near(key, name, present)}",
        )
        require(
            list(present).count(name) == 1,
            f"{key}={name} is the name of {list(present).count(name)} columns of {where}: rename all but one.",
        )
