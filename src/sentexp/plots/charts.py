"""Charts that the plots of a run and the report of a comparison share: arrays in, axes drawn on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.plots.style import STYLES, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_LABELS, TOO_MANY_LABELS = 6, 20
"""From here on cells hold shares only, or nothing but their shade."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Mean confidence, accuracy and rows of each bin that has rows; `low` and `high` are ends of the accuracy."""

    confidence: NDArray[Any]
    accuracy: NDArray[Any]
    rows: NDArray[Any]
    low: NDArray[Any] | None = None
    high: NDArray[Any] | None = None


def draw_confusion(axes: "Axes", counts: NDArray[Any], labels: Sequence[str]) -> None:
    """Draw counts of true labels (rows) against predicted labels (columns), shaded by their share of the row."""
    classes = len(labels)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares) if classes < TOO_MANY_LABELS else ():
        text = f"{counts[i, j]:,}\n{share:.0%}" if classes < MANY_LABELS else f"{share:.0%}"
        ink = "white" if share > 0.5 else "black"  # noqa: PLR2004 (middle of the grey scale)
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8 if classes < MANY_LABELS else 6)
    names = [plain(label, 14) for label in labels]
    axes.set_xticks(range(classes), names, rotation=40 if classes > 2 else 0)  # noqa: PLR2004 (fits the width)
    axes.set_yticks(range(classes), names)
    axes.spines[:].set_visible(True)


MOST_POINTS = 5_000
"""Points of a scatter plot; of more rows these are drawn, evenly chosen."""


def draw_scores(axes: "Axes", true: NDArray[Any], predicted: NDArray[Any]) -> None:
    """Draw predicted scores over true ones, shape (rows,), and the diagonal."""
    step = -(-len(true) // MOST_POINTS)
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axes.plot((low, high), (low, high), color="darkgrey", linewidth=0.8)
    axes.plot(true[::step], predicted[::step], "o", color="black", fillstyle="none", markersize=3, alpha=0.5)


def draw_reliability(top: "Axes", bottom: "Axes", curves: Mapping[str, Reliability], least: float = 0) -> None:
    """Draw accuracy over confidence, and below it how many rows have that confidence.

    On the grey diagonal, probabilities are what they say.

    Args:
        top: for the accuracy.
        bottom: for the rows.
        curves: by name; a name that is empty has no legend.
        least: the smallest confidence that there can be.
    """
    top.plot((least, 1), (least, 1), color="darkgrey", linewidth=0.8)
    for (name, curve), (ink, line, marker) in zip(curves.items(), STYLES, strict=False):
        style: dict[str, Any] = {"color": ink, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1}
        ends = None
        if curve.low is not None and curve.high is not None:
            ends = np.maximum(0, [curve.accuracy - curve.low, curve.high - curve.accuracy])
        top.errorbar(curve.confidence, curve.accuracy, ends, label=plain(name), capsize=2, **style)
        bottom.plot(curve.confidence, curve.rows, **style)
    if any(curves):
        top.legend()
    top.set_ylim(0, 1.03)
    bottom.set_ylim(0, None)
