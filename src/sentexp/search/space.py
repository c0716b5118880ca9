"""The space that a search looks through, in hydra's override grammar.

`optim.lr=tag(log,interval(1e-5,1e-3))` is a range of numbers, `peft.r=int(interval(4,64))` of whole ones,
`peft.r=8,16,32`, `choice(...)` and `range(...)` are values to choose from.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import IntervalSweep, Override, Sweep

from sentexp.config.explain import require_values
from sentexp.errors import require
from sentexp.tracking.run_names import run_names

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 3
"""Significant digits of a proposed number in a run's name; the run uses all of them."""

Value = str | int | float


@dataclass(kw_only=True, slots=True)
class Interval:
    """Numbers from `low` to `high`, both included: whole ones where these are, and even on a log scale with `log`."""

    low: float
    high: float
    log: bool

    def ends(self) -> list[Value]:
        """Return the two ends."""
        return [self.low, self.high]

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's word for it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(kw_only=True, slots=True)
class Choice:
    """Values as hydra writes them."""

    values: list[str]

    def ends(self) -> list[Value]:
        """Return every value."""
        return list(self.values)

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's word for it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


class Space:
    """What is searched, and what is the same in all runs.

    Args:
        overrides: parsed; of two with the same key the later counts.

    Raises:
        UserError: nothing is searched, or an interval that holds nothing or has no logarithm.
    """

    def __init__(self, overrides: list[Override]) -> None:
        self.fixed: dict[str, str] = {}
        self.dimensions: dict[str, Interval | Choice] = {}
        for override in overrides:
            require_values(override)
            key = override.get_key_element()
            _check_tags(key, override)
            self.fixed.pop(key, None)
            self.dimensions.pop(key, None)
            if not override.is_sweep_override():
                self.fixed[key] = override.get_value_element_as_str()
            elif override.is_interval_sweep():
                self.dimensions[key] = _interval(key, override)
            else:
                self.dimensions[key] = Choice(values=list(override.sweep_string_iterator()))
        require(
            bool(self.dimensions),
            "hydra/sweeper=optuna has nothing to search: give at least one key several values, such as "
            "peft.r=8,16,32 or 'optim.lr=tag(log,interval(1e-5,1e-3))'.",
        )

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a run with these values of the dimensions."""
        fixed = [key if key.startswith("~") else f"{key}={value}" for key, value in self.fixed.items()]
        return [*fixed, *(f"{key}={values[key]}" for key in self.dimensions)]

    def name(self, values: Mapping[str, Value]) -> str:
        """Return the name of a run with these values."""
        shown = {key: f"{value:.{DIGITS}g}" if isinstance(value, float) else value for key, value in values.items()}
        return run_names([[f"{key}={shown[key]}" for key in self.dimensions]])[0]

    def distributions(self) -> "dict[str, BaseDistribution]":
        """Return the dimensions as Optuna takes them."""
        return {key: dimension.distribution() for key, dimension in self.dimensions.items()}

    def corners(self) -> list[dict[str, Value]]:
        """Return values in which every choice and every end of an interval occurs; the other keys are at their first.

        A value that no run can have shows here, before the first run starts.
        """
        first = {key: dimension.ends()[0] for key, dimension in self.dimensions.items()}
        others = [first | {key: value} for key, dim in self.dimensions.items() for value in dim.ends()[1:]]
        return [first, *others]

    def is_finite(self) -> bool:
        """Tell whether there are only so many combinations."""
        return all(isinstance(dimension, Choice) for dimension in self.dimensions.values())

    def grid(self) -> list[dict[str, Value]]:
        """Return every combination, the last key changing first, as in a sweep without a search.

        Raises:
            UserError: an interval has no end of values.
        """
        for key, dimension in self.dimensions.items():
            require(
                isinstance(dimension, Choice),
                f"hydra.sweeper.sampler=grid tries every value, and {key} is an interval: give its values, such as "
                f"{key}=1,2,3 or {key}=range(1,4), or use hydra.sweeper.sampler=tpe, random or gp.",
            )
        values = itertools.product(*(dimension.ends() for dimension in self.dimensions.values()))
        return [dict(zip(self.dimensions, combination, strict=True)) for combination in values]

    def describe(self) -> dict[str, str]:
        """Return each dimension as text, whatever words it was given in."""
        return {key: str(self.dimensions[key]) for key in sorted(self.dimensions)}


def _check_tags(key: str, override: Override) -> None:
    """Refuse tags that would change nothing."""
    value = override.value()
    tags = value.tags if isinstance(value, Sweep) else set()
    legal = {"log"} if override.is_interval_sweep() else set()
    require(
        tags <= legal,
        f"{key}: the tag {', '.join(sorted(tags - legal))} is not supported: tag(log,interval(1e-5,1e-3)) is, for an "
        "interval on a log scale.",
    )


def _interval(key: str, override: Override) -> Interval:
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep)
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    log = "log" in sweep.tags
    require(low < high, f"{key}=interval({low},{high}) holds nothing: its first number must be below its second.")
    require(not log or low > 0, f"{key}=tag(log,interval({low},{high})) must begin above 0, as 0 has no logarithm.")
    return Interval(low=low, high=high, log=log)
