"""The picture of a learning curve: the error over the training rows, its power law, and what a target takes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.leaderboard import Leaderboard, ranked
from sentexp.compare.power_law import FEWEST_SIZES, PowerLaw, fit_power_law
from sentexp.compare.settings import lines_along, swept
from sentexp.config import TargetKind
from sentexp.config.metric_names import is_better_higher
from sentexp.plots.style import FEWEST, STYLES, drawn, is_wide, panels, plain, set_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING_ROWS = "data.train_subset"
TARGET = 0.90
FAR = 100
"""A power law is not followed beyond so many times the largest size."""
REFITS = 100
"""Resamples through which the power law is drawn again."""


@drawn
def learning_curve_picture(board: Leaderboard, target: float = TARGET) -> "Figure | None":
    """Draw the error over the training rows with a power law, and say how many rows the target takes.

    A metric of which less is better gives way to the usual one. None where rows were not swept, or fewer than three
    sizes, and of scores, whose metrics are no shares.
    """
    if board.kind is TargetKind.scores:
        return None
    settings = swept(ranked(board), TRAINING_ROWS)
    axis = next((one for one in settings if one.key == TRAINING_ROWS), None)
    sizes = np.asarray([] if axis is None else axis.numbers)
    shown = sizes[np.isfinite(sizes)]
    if axis is None or len(np.unique(shown)) < FEWEST or shown.min() < 1:  # below 1 they are shares of unknown rows
        return None
    metric = board.metric if is_better_higher(board.metric) else board.kind.headline
    lines = lines_along(axis, settings)[: len(STYLES)]
    figure, (panel,) = panels(1, 6.5, 4.2)
    for (name, places), style in zip(lines, STYLES, strict=False):
        _draw_curve(panel, board, metric, sizes[places], places, plain(name), style, target)
    set_ticks(panel, shown.tolist(), is_wide(shown))
    panel.axhline(1 - target, color="darkgrey", linewidth=0.8)
    panel.annotate(
        f"{target:.2f}",
        (1, 1 - target),
        (3, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
    )
    panel.set(xlabel="training rows", ylabel=f"error: 1 - {metric}", ylim=(0, None))
    panel.legend(loc="upper right")
    return figure


def _draw_curve(
    panel: "Axes",
    board: Leaderboard,
    metric: str,
    x: NDArray[Any],
    places: list[int],
    name: str,
    style: Any,
    target: float,
) -> None:
    """Draw the errors of one line and, through four sizes or more, its power law, with what it promises."""
    (ink, line, marker), rows = style, board.table.iloc[places]
    errors, low, high = (1 - rows[metric + end].to_numpy() for end in ("", "_high", "_low"))
    ends = np.maximum(0, [errors - low, high - errors])
    shape: dict[str, Any] = {"color": ink, "marker": marker, "markersize": 4, "capsize": 2, "linewidth": 1}
    if len(np.unique(x)) < FEWEST_SIZES:
        panel.errorbar(x, errors, ends, linestyle=line, label=name or None, **shape)
        return
    law = fit_power_law(x, errors)
    sentence = _rows_told(law, _refits(board, metric, places, x, law), target, x.max(), board.confidence)
    panel.errorbar(x, errors, ends, linestyle="none", label=f"{name}: {sentence}" if name else sentence, **shape)
    along = np.geomspace(x.min(), 2 * x.max(), 100)
    panel.plot(along, [law.at(n) for n in along], linestyle=line, color=ink, linewidth=1)


def _refits(board: Leaderboard, metric: str, places: list[int], x: NDArray[Any], law: PowerLaw) -> list[PowerLaw]:
    """Return the law through the same resamples of the test rows at every size."""
    order = {one.name: place for place, one in enumerate(board.evidence.configurations)}
    numbers = [order[name] for name in board.table["configuration"].iloc[places]]
    replicates = 1 - board.evidence.replicates[metric][numbers][:, :REFITS]
    return [fit_power_law(x, errors, near=law) for errors in replicates.T if np.isfinite(errors).all()]


def _rows_told(law: PowerLaw, refits: Sequence[PowerLaw], target: float, largest: float, confidence: float) -> str:
    """Say how many rows the target takes, and between which numbers the noise of the test rows leaves it."""
    wanted = law.rows_for(1 - target)
    if math.isinf(wanted):
        return f"{target:.2f} is not within reach: the fitted limit is {1 - law.limit:.2f}"
    if wanted > FAR * largest:
        return f"{target:.2f} is not within {FAR} times these rows"
    sentence = f"{target:.2f} takes about {_rounded(wanted)} rows"
    if not refits:
        return sentence
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile([one.rows_for(1 - target) for one in refits], tails, method="nearest")
    return f"{sentence} [{_rounded(low)}, {_rounded(high) if high <= FAR * largest else 'out of reach'}]"


def _rounded(rows: float) -> str:
    """Return a number of rows with the two digits that an extrapolation has at most."""
    digits = 1 - math.floor(math.log10(max(1.0, rows)))
    return f"{round(rows, digits):,.0f}"
