"""The area under the ROC curve of each class or label, on weighted rows.

It is a mean over pairs of rows, split as Hoeffding (1948) does: into means over the rows of either side, which are sums
like those of other metrics, and a remainder over pairs, which is of the order 1 / rows. The remainder is computed where
the rows are few, and left out where they are many.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW_ROWS = 2000
"""Up to here the remainder over pairs is computed; beyond, it changes an interval by less than 1 %."""


@dataclass(kw_only=True, slots=True)
class Pairs:
    """What is left of the wins of a class's rows over the rest's, when the mean of each row is taken away.

    `positive` and `negative` are row numbers, `left` has the shape (positive, negative).
    """

    positive: NDArray[Any]
    negative: NDArray[Any]
    left: NDArray[Any]

    def remainder(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Return what the pairs add to the area of each resample, shape (resamples,)."""
        ours, theirs = np.take(weights, self.positive, 1), np.take(weights, self.negative, 1)
        total = ours.sum(1) * theirs.sum(1)
        added = np.einsum("ij,ij->i", ours @ self.left, theirs)
        return ratio(added, total)


def ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[Any]:
    """Return the ratio; 0 where there is nothing to divide by."""
    found: NDArray[Any] = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found


def areas(members: NDArray[Any], probabilities: NDArray[Any]) -> tuple[NDArray[Any], list[Pairs]]:
    """Return the two sides of the area of each class, shape (rows, 2 classes), and its remainders, if rows are few.

    Args:
        members: whether a row has a class, shape (rows, classes).
        probabilities: same shape.
    """
    rows, classes = probabilities.shape
    sides = np.zeros((rows, 2 * classes), np.float32)
    pairs = []
    for n in range(classes):
        ours, rest = np.flatnonzero(members[:, n]), np.flatnonzero(~members[:, n])
        if len(ours) and len(rest):
            sides[ours, n], sides[rest, classes + n] = _sides(probabilities[ours, n], probabilities[rest, n])
            pairs.append(_pairs(probabilities[:, n], ours, rest, sides[:, n] + sides[:, classes + n]))
    complete = [pair for pair in pairs if pair is not None]
    return sides, complete if len(complete) == classes else []


def _sides(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the structural components of the area (DeLong et al. 1988), those of our side less the area.

    They are the share of the other side that a row wins against; by sorting (Sun and Xu 2014).
    """
    wins = _wins(ours, theirs)
    return wins - wins.mean(), 1 - _wins(theirs, ours)


def _wins(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
    """Return the share of theirs that each of ours wins against, a tie counting half."""
    order, ordered = np.argsort(ours), np.sort(theirs)  # numbers in order are looked up faster
    below, through = (np.searchsorted(ordered, ours[order], side=side) for side in ("left", "right"))
    wins = np.empty(len(ours))
    wins[order] = (below + through) / (2 * len(theirs))
    return wins


def _pairs(scores: NDArray[Any], members: NDArray[Any], rest: NDArray[Any], sides: NDArray[Any]) -> Pairs | None:
    if len(scores) > FEW_ROWS:
        return None
    ours, theirs = scores[members][:, None], scores[rest][None]
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    left = wins - sides[members][:, None] - sides[rest][None]
    return Pairs(positive=members, negative=rest, left=left.astype(np.float32))
