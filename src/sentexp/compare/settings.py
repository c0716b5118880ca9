"""The settings in which configurations differ, and those that they share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sentexp.compare.comparison import Configuration
from sentexp.tracking.run_names import run_names

MISSING = ("", "None", "null")
"""What MLflow holds of a setting without a value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A setting in which configurations differ: the value of each, None where it has no such setting.

    `numbers` are the values where all of them are numbers, and NaN where there is none; else they are empty.
    """

    key: str
    values: list[str | None]
    numbers: list[float]

    def is_numeric(self) -> bool:
        """Tell whether there are at least two numbers and nothing else."""
        return len({number for number in self.numbers if not math.isnan(number)}) > 1


def differing(settings: Sequence[dict[str, str]]) -> dict[str, list[str | None]]:
    """Return the values of each setting that is not the same everywhere, by its key; None where it is missing.

    Args:
        settings: of each configuration or run, by key.
    """
    keys = sorted(set().union(*settings))
    columns = {key: [None if one.get(key) is None else str(one[key]) for one in settings] for key in keys}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def shared(settings: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the settings that are the same everywhere, by key."""
    changed = differing(settings)
    return {key: str(value) for key, value in sorted(settings[0].items()) if key not in changed} if settings else {}


def swept(configurations: Sequence[Configuration], first: str = "") -> list[Axis]:
    """Return the settings that differ, one of those that only ever change together.

    Args:
        configurations: that need different names.
        first: the key that represents the others; without it that is a number, with a short key.
    """
    columns = differing([one.runs[0].settings for one in configurations])
    axes = [Axis(key=key, values=values, numbers=_numbers(values)) for key, values in columns.items()]
    kept: dict[tuple[int, ...], Axis] = {}
    for axis in sorted(axes, key=lambda one: (one.key != first, not one.is_numeric(), len(one.key), one.key)):
        kept.setdefault(_groups(axis.values), axis)
    return sorted(kept.values(), key=lambda one: one.key)


def _groups(values: Sequence[str | None]) -> tuple[int, ...]:
    """Return for each value the place of its first occurrence: equal for settings that change together."""
    first: dict[str | None, int] = {}
    return tuple(first.setdefault(value, place) for place, value in enumerate(values))


def _numbers(values: Sequence[str | None]) -> list[float]:
    try:
        numbers = [math.nan if value is None or value in MISSING else float(value) for value in values]
    except ValueError:
        return []
    return [] if any(math.isinf(number) for number in numbers) else numbers


def lines_along(axis: Axis, settings: Sequence[Axis]) -> list[tuple[str, list[int]]]:
    """Return the configurations that differ in one numeric setting alone: their name, and their places by its value.

    Args:
        axis: that setting.
        settings: all that were swept, it among them.
    """
    others = [other for other in settings if other is not axis]
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for place, value in enumerate(axis.numbers):
        if math.isfinite(value):
            groups.setdefault(tuple(other.values[place] for other in others), []).append(place)
    ordered = sorted(groups, key=lambda values: tuple(map(by_value, values)))
    words = [[f"{other.key}={value}" for other, value in zip(others, values, strict=True)] for values in ordered]
    names = run_names(words) if others else [""] * len(ordered)
    places = [sorted(groups[values], key=lambda place: axis.numbers[place]) for values in ordered]
    return list(zip(names, places, strict=True))


def by_value(value: str | None) -> tuple[int, float, str]:
    """Return what puts values in order: numbers, words, and what is missing."""
    if value is None:
        return 2, 0.0, ""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
