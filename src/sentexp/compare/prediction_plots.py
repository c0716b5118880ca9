"""Pictures of the predictions of the best configurations: ROC, precision-recall, reliability, confusion.

Each has a panel for each of the best, so that bands and bars never lie over each other. Those of a sweep, its settings
and costs, are in `sweep_plots`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.comparison import Comparison, Configuration
from sentexp.compare.leaderboard import Leaderboard, ranked
from sentexp.compare.roc_pr_curves import GRID, Curve, band, positives, precision_recall, roc
from sentexp.compare.sample_size import wilson
from sentexp.config.metric_names import BINS
from sentexp.plots import charts
from sentexp.plots.style import BEST, drawn, panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = 30


@drawn
def roc_picture(board: Leaderboard, comparison: Comparison, resamples: int = 200, seed: int = 0) -> "Figure":
    """Draw the ROC curves of the best configurations with bands from resamples of the rows, pointwise."""
    figure, axes = _rates(board, comparison, roc, resamples, seed)
    for panel, (_, row) in zip(axes, board.table.iterrows(), strict=False):
        area, low, high = (row[f"auroc_macro{end}"] for end in ("", "_low", "_high"))
        panel.plot((0, 1), (0, 1), color="darkgrey", linewidth=0.8)
        panel.text(0.98, 0.04, f"area {area:.3f}\n[{low:.3f}, {high:.3f}]", ha="right", fontsize=8)
    axes[0].set_ylabel("true positive rate")
    figure.supxlabel(f"false positive rate; {_positive(comparison)}", fontsize=9)
    return figure


@drawn
def precision_recall_picture(
    board: Leaderboard, comparison: Comparison, resamples: int = 200, seed: int = 0
) -> "Figure":
    """Draw precision over recall of the best configurations with bands from resamples of the rows, pointwise."""
    figure, axes = _rates(board, comparison, precision_recall, resamples, seed)
    classes = positives(comparison.targets, len(comparison.labels))
    chance = float(np.mean([np.mean(comparison.targets == label) for label in classes]))
    for panel in axes:
        panel.axhline(chance, color="darkgrey", linewidth=0.8)
    axes[0].set_ylabel("precision")
    figure.supxlabel(f"recall; {_positive(comparison)}", fontsize=9)
    return figure


def _rates(
    board: Leaderboard, comparison: Comparison, curve: Curve, resamples: int, seed: int
) -> "tuple[Figure, list[Axes]]":
    """Draw a curve and its band in a panel for each of the best; the first one's curve is dashed in the others."""
    best = ranked(board)[:BEST]
    figure, axes = panels(len(best), 2.9, 3.3, sharex=True, sharey=True)
    first = None
    for panel, one in zip(axes, best, strict=True):
        runs = [run.probabilities for run in one.runs]
        line, low, high = band(curve, comparison.targets, runs, board.confidence, resamples, seed)
        panel.fill_between(GRID, low, high, color="lightgrey", linewidth=0, label=f"{board.level} band")
        panel.plot(GRID, line, color="black", linewidth=1.2, label="this configuration")
        if first is not None:
            panel.plot(GRID, first, "--", color="dimgrey", linewidth=0.8, label="the first")
        first = line if first is None else first
        panel.set(title=plain(one.name, TITLE), xlim=(0, 1), ylim=(0, 1.02))
    handles, names = axes[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3)
    return figure, axes


def _positive(comparison: Comparison) -> str:
    """Return which classes a curve separates."""
    classes = positives(comparison.targets, len(comparison.labels))
    if len(comparison.labels) == 2:  # noqa: PLR2004
        return f"label: {plain(comparison.labels[1])}"
    return f"mean over {len(classes)} labels, each against the rest"


@drawn
def reliability_picture(board: Leaderboard, comparison: Comparison) -> "Figure":
    """Draw accuracy over confidence, in bins with Wilson's intervals, above how many rows have that confidence."""
    from matplotlib.figure import Figure

    best = ranked(board)[:BEST]
    figure = Figure(figsize=(max(2.9 * len(best), 4.5), 4.2), layout="constrained")
    grid = figure.subplots(2, len(best), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    least = 1 / len(comparison.labels)
    for (top, bottom), one, error in zip(grid.T, best, board.table["ece"], strict=False):
        curve = _reliability(comparison.targets, one, board.confidence)
        charts.draw_reliability(top, bottom, {"": curve}, least)
        top.text(1, 0.02, f"ECE {error:.3f}", ha="right", fontsize=8)
        top.set_title(plain(one.name, TITLE))
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("rows")
    figure.supxlabel("confidence: the largest probability", fontsize=9)
    return figure


def _reliability(targets: NDArray[Any], one: Configuration, confidence: float) -> charts.Reliability:
    """Return mean confidence, accuracy with its interval, and rows of each bin that has rows.

    The runs of a configuration answer the same rows: together they count as one run, or intervals would be too narrow.
    """
    probabilities = np.concatenate([run.probabilities for run in one.runs])
    largest, right = probabilities.max(1), probabilities.argmax(1) == np.tile(targets, len(one.runs))
    bins = np.minimum((largest * BINS).astype(np.int64), BINS - 1)
    _, places, counts = np.unique(bins, return_inverse=True, return_counts=True)
    hits, total = (np.bincount(places, weights) for weights in (right, largest))
    rows = counts / len(one.runs)
    low, high = wilson(hits / len(one.runs), rows, confidence)
    return charts.Reliability(confidence=total / counts, accuracy=hits / counts, rows=rows, low=low, high=high)


@drawn
def scores_picture(board: Leaderboard, comparison: Comparison) -> "Figure":
    """Draw predicted over true scores of the best, with their errors; of several seeds the first is drawn."""
    best = ranked(board)[:BEST]
    figure, axes = panels(len(best), 2.9, 3.3, sharex=True, sharey=True)
    for panel, one, (_, row) in zip(axes, best, board.table.iterrows(), strict=False):
        charts.draw_scores(panel, comparison.targets, one.runs[0].probabilities[:, 0])
        panel.text(0.98, 0.04, f"RMSE {row['rmse']:.3f}", ha="right", fontsize=8, transform=panel.transAxes)
        panel.set_title(plain(one.name, TITLE))
    axes[0].set_ylabel("predicted score")
    figure.supxlabel("true score", fontsize=9)
    return figure


@drawn
def confusion_picture(board: Leaderboard, comparison: Comparison) -> "Figure":
    """Draw the confusion matrices of the best: true labels are rows, shaded by their shares; seeds are added up."""
    best, classes = ranked(board)[:BEST], len(comparison.labels)
    size = min(2.2 + 0.35 * classes, 5.5)
    figure, axes = panels(len(best), size, size + 0.3, sharey=True)
    for panel, one in zip(axes, best, strict=True):
        counts = np.sum([_counts(comparison.targets, run.probabilities) for run in one.runs], axis=0)
        charts.draw_confusion(panel, counts, comparison.labels)
        seeds = f"\n{len(one.runs)} seeds, added up" if len(one.runs) > 1 else ""
        panel.set_title(plain(one.name, TITLE) + seeds)
    axes[0].set_ylabel("true")
    figure.supxlabel("predicted", fontsize=9)
    return figure


def _counts(targets: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[Any]:
    """Return how often each true label got each answer, shape (classes, classes)."""
    classes = probabilities.shape[1]
    return np.bincount(targets * classes + probabilities.argmax(1), minlength=classes**2).reshape(classes, classes)
