"""The Pareto front: what nothing else beats in cost and quality at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pareto_front(costs: NDArray[Any], values: NDArray[Any], higher: bool = True) -> NDArray[Any]:
    """Tell which points no other beats: none is as good in both and better in one; bool, shape (points,).

    Args:
        costs: less is better, shape (points,).
        values: shape (points,).
        higher: whether more of a value is better.
    """
    gains = values if higher else -values
    cheaper, better = costs[:, None] <= costs[None], gains[:, None] >= gains[None]
    strictly = (costs[:, None] < costs[None]) | (gains[:, None] > gains[None])
    return np.asarray(~(cheaper & better & strictly).any(0))
