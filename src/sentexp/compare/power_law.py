"""A power law through a learning curve: where more rows lead, and how many a wanted quality takes.

The error of a classifier falls with its training rows as a + b * n**-c (Figueroa et al. 2012, "Predicting sample size
required for classification performance"; Hestness et al. 2017, "Deep learning scaling is predictable, empirically").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_SIZES = 4
"""Three parameters go through any three points, so that these tell nothing."""
STEEPEST = 2.0
"""Learning curves that were measured fall far slower than n**-2."""
STARTS = (0.25, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """The error limit + scale * n**-power after n rows; `limit` is what no number of rows goes below."""

    limit: float
    scale: float
    power: float

    def at(self, rows: float) -> float:
        """Return the error after so many rows."""
        return float(self.limit + self.scale * float(rows) ** -self.power)

    def rows_for(self, error: float) -> float:
        """Return the rows after which the error has fallen to this, at least 1; infinite where it never does."""
        if error >= self.at(1):
            return 1.0
        if error <= self.limit or self.power == 0:
            return np.inf
        with np.errstate(over="ignore"):
            return float(np.float64((error - self.limit) / self.scale) ** (-1 / self.power))


def fit_power_law(
    rows: Sequence[float] | NDArray[Any], values: Sequence[float] | NDArray[Any], near: PowerLaw | None = None
) -> PowerLaw:
    """Fit a falling power law by least squares.

    Args:
        rows: of each training; a size may come several times.
        values: the error after each, from 0 to 1.
        near: where to search from, for a fit to nearly the same values; without it there are several starts.

    Raises:
        ValueError: there are fewer than four sizes.
    """
    from scipy.optimize import least_squares

    sizes, errors = np.asarray(rows, float), np.asarray(values, float)
    if len(np.unique(sizes)) < FEWEST_SIZES:
        raise ValueError(f"a power law takes {FEWEST_SIZES} sizes, not {len(np.unique(sizes))}")
    middle = float(np.exp(np.log(sizes).mean()))  # around it the parameters hardly depend on each other
    logs = np.log(sizes / middle)
    lowest, highest = float(errors.min()), float(errors.max())
    if lowest == highest:
        return PowerLaw(limit=lowest, scale=0.0, power=0.0)

    def missed(law: NDArray[Any]) -> NDArray[Any]:
        limit, scale, power = law
        return np.asarray(limit + scale * np.exp(-power * logs) - errors)

    starts = [(lowest / 2, highest - lowest, power) for power in STARTS]
    if near is not None:
        starts = [(min(near.limit, highest), near.scale * middle**-near.power, near.power)]
    ends = ((0, 0, 0), (highest, np.inf, STEEPEST))
    fits = [least_squares(missed, start, bounds=ends) for start in starts]
    limit, scale, power = map(float, min(fits, key=lambda fit: float(fit.cost)).x)
    return PowerLaw(limit=limit, scale=scale * middle**power, power=power)
