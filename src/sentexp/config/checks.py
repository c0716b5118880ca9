"""Checks that several configurations share: ranges of fields, and values that several have."""

import codecs
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from sentexp.config.metric_names import COMPARED
from sentexp.errors import UserError, require

Given = TypeVar("Given")
AUTO = "auto"
ACCELERATORS = (AUTO, "cpu", "gpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The finite numbers that a key can have; the note says what else it can be, or what is usual."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    note: str = ""

    def check(self, key: str, value: float) -> None:
        """Refuse a number outside, by the key as it is typed."""
        finite = "" if math.isfinite(value) else "a finite number "
        note = f" ({self.note})" if self.note else ""
        require(value in self, f"{key}={value} must be {finite}{self}{note}.")

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is inside."""
        return (
            math.isfinite(value)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        """Return the limits in words, such as `at least 0 and below 1`."""
        limits = {"above": self.gt, "at least": self.ge, "below": self.lt, "at most": self.le}
        return " and ".join(f"{words} {limit}" for words, limit in limits.items() if limit is not None)


CONFIDENCE = Range(gt=0, lt=1)
RESAMPLES = Range(ge=100)


def number(
    default: Any = dataclasses.MISSING,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    note: str = "",
) -> Any:
    """Return a field for a number in a range; `check_ranges` refuses others. None passes where the type allows it."""
    return dataclasses.field(default=default, metadata={"range": Range(gt=gt, ge=ge, lt=lt, le=le, note=note)})


def seed_number() -> Any:
    """Return a field for the seed of a random generator."""
    return number(ge=0, le=2**32 - 1)


def check_ranges(config: Any, group: str = "") -> None:
    """Refuse a number that is outside the range of its field; the group precedes the key."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if "range" in item.metadata and value is not None:
            item.metadata["range"].check(f"{group}.{item.name}" if group else item.name, value)


def check_count_or_fraction(key: str, value: float | None, legal: str) -> None:
    """Refuse a number that is neither a count nor a fraction below 1; None passes."""
    require(
        value is None or 0 < value < 1 or (value >= 1 and value % 1 == 0),
        f"{key}={value} must be {legal}.",
    )


def check_accelerator(key: str, value: str) -> None:
    """Refuse a device that is not known."""
    require(value in ACCELERATORS, f"{key}={value} must be auto, cpu or gpu.")


def check_switch(key: str, value: object) -> None:
    """Refuse a switch that is neither on nor off, nor left to what is best."""
    require(isinstance(value, bool) or value == AUTO, f"{key}={value} must be auto, true or false.")


def check_encoding(key: str, value: str | None, otherwise: str = "") -> None:
    """Refuse an encoding that Python does not know; `otherwise` says what null means."""
    try:
        codecs.lookup(value or "utf-8")
    except LookupError:
        raise UserError(
            f"{key}={value} is not an encoding that Python knows: utf-8, latin-1, cp1252 and utf-16 are usual"
            f"{otherwise}."
        ) from None


def read_delimiter(key: str, value: str | None, otherwise: str = "") -> str | None:
    r"""Return the character between columns, with `\t` read as people type it; `otherwise` says what null means."""
    read = "\t" if value == "\\t" else value
    require(
        read is None or (len(read) == 1 and read not in '"\r\n'),
        f"{key}={read!r} must be one character such as ; or \\t{otherwise}.",
    )
    return read


def read_names(key: str, value: object, legal: str) -> list[str]:
    """Return a list of names, each once; a single name counts as a list of one."""
    return list(dict.fromkeys(_names(key, value, legal)))


def read_columns(key: str, value: object) -> list[str]:
    """Return the names of all columns of a file, in their order; those that are not read may have one name."""
    return _names(key, value, "a list of the names of all columns, in their order")


def _names(key: str, value: object, legal: str) -> list[str]:
    names = [value] if isinstance(value, str) and value else value
    if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
        return names
    raise UserError(f"{key}={value} must be {legal}.")


def check_measure(metric: str, confidence: float = 0.95, resamples: int = 2000) -> None:
    """Refuse an unknown metric, an impossible confidence, and too few resamples."""
    require(metric in COMPARED, f"metric={metric} must be one of {', '.join(COMPARED)}.")
    CONFIDENCE.check("confidence", confidence)
    RESAMPLES.check("resamples", resamples)


def given(value: Given | None, sentence: str) -> Given:
    """Return a value that must be given; refuse None with the sentence."""
    if value is None:
        raise UserError(sentence)
    return value
