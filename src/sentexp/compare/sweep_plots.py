"""Pictures of a sweep: the metric against settings and against costs."""

import math
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.leaderboard import Leaderboard, ranked
from sentexp.compare.pareto import pareto_front
from sentexp.compare.settings import Axis, lines_along, swept
from sentexp.config.metric_names import is_better_higher
from sentexp.plots.style import FEWEST, STYLES, drawn, is_wide, panels, plain, set_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 4
MOST_BARS, MOST_ASIDE = 100, 12
"""Configurations whose bars fit in a panel, and side by side at one value."""
MOST_LETTERS, MOST_NAMED = len(string.ascii_uppercase), 8
"""Up to so many configurations all have letters beside the Pareto fronts; of more the best on a front, so many."""
COST_NAMES = {
    "seconds": "training, seconds",
    "trainable_parameters": "parameters trained",
    "peak_memory_gib": "peak memory, GiB",
    "saved_mib": "saved on disk, MiB",
}
LOGARITHMIC = ("saved_mib",)
"""Costs that are compared by their ratios, however near they are."""


@drawn
def axis_picture(board: Leaderboard) -> "Figure | None":
    """Draw the metric against each numeric setting that was swept, a line for each combination of the others.

    None without such a setting, or with fewer than three configurations along it.
    """
    settings = swept(ranked(board))
    along = [axis for axis in settings if axis.is_numeric() and np.isfinite(axis.numbers).sum() >= FEWEST][:MOST_PANELS]
    if not along:
        return None
    figure, axes = panels(len(along), 4.2, 3.5, sharey=True)
    for panel, axis in zip(axes, along, strict=True):
        _draw_along(panel, board, axis, settings)
    axes[0].set_ylabel(board.metric)
    return figure


def _draw_along(panel: "Axes", board: Leaderboard, axis: Axis, settings: Sequence[Axis]) -> None:
    """Draw the metric along a setting: a band for one line, bars for several, bars alone where nothing is a line.

    Where bars would lie over each other, configurations are points, with a line through the medians.
    """
    table, numbers = board.table, np.asarray(axis.numbers)
    wide = is_wide(numbers[np.isfinite(numbers)])
    panel.set_xlabel(plain(axis.key))
    set_ticks(panel, numbers[np.isfinite(numbers)].tolist(), wide)
    lines = lines_along(axis, settings)
    joined = 1 <= len(lines) <= len(STYLES) and max(len(places) for _, places in lines) > 1
    if not joined:
        lines = [("", np.flatnonzero(np.isfinite(numbers)).tolist())]
        if _are_many(numbers[lines[0][1]]):
            _draw_points(panel, numbers[lines[0][1]], table[board.metric].to_numpy(float)[lines[0][1]])
            return
    step = 1.04 if wide else 0.015 * float(np.ptp(numbers[np.isfinite(numbers)]))
    for place, ((label, places), (ink, style, marker)) in enumerate(zip(lines, STYLES, strict=False)):
        x, rows = numbers[places], table.iloc[places]
        y, low, high = (rows[board.metric + end].to_numpy() for end in ("", "_low", "_high"))
        if joined and len(lines) == 1:
            panel.fill_between(x, low, high, color="lightgrey", linewidth=0)
            panel.plot(x, y, color=ink, marker=marker, linewidth=1.2)
            continue
        shift = np.full(len(x), place - (len(lines) - 1) / 2) if joined else _aside(x)  # or bars lie over each other
        moved, ends = x * step**shift if wide else x + step * shift, np.maximum(0, [y - low, high - y])
        shape: dict[str, Any] = {"color": ink, "marker": marker, "linewidth": 1, "markersize": 4, "capsize": 2}
        panel.errorbar(moved, y, ends, linestyle=style if joined else "none", label=plain(label), **shape)
    if len(lines) > 1:
        panel.legend(loc="best")


def _are_many(x: NDArray[Any]) -> bool:
    """Tell whether the bars of these values would lie over each other."""
    return len(x) > MOST_BARS or int(np.unique(x, return_counts=True)[1].max()) > MOST_ASIDE


def _draw_points(panel: "Axes", x: NDArray[Any], y: NDArray[Any]) -> None:
    """Draw configurations without their intervals, and the median of each value where all values have several."""
    values, counts = np.unique(x, return_counts=True)
    panel.plot(x, y, "o", color="grey", fillstyle="none", markersize=3, label="configurations")
    if counts.min() > 1:
        medians = [np.nanmedian(y[x == value]) for value in values]
        panel.plot(values, medians, color="black", marker="D", markersize=4, label="median")
    panel.legend(loc="best")


def _aside(x: NDArray[Any]) -> NDArray[Any]:
    """Return how many steps each point is moved, so that points of the same value are side by side."""
    shift = np.empty(len(x))
    for value in np.unique(x):
        same = np.flatnonzero(x == value)
        shift[same] = np.arange(len(same)) - (len(same) - 1) / 2
    return shift


@drawn
def pareto_picture(board: Leaderboard) -> "Figure | None":
    """Draw the metric with its interval against training time, parameters, memory and disk, and what nothing beats.

    None with fewer than three configurations, or where all cost the same.
    """
    from matplotlib.lines import Line2D

    table = board.table[board.table["rank"].notna()]
    differing = [name for name in COST_NAMES if name in table and table[name].nunique() > 1]
    costs = [name for name in differing if (table[name].notna() & table[board.metric].notna()).sum() >= FEWEST]
    if not costs:
        return None
    fronts = {name: _front(board, name) for name in costs}
    members = sorted(set(np.concatenate(list(fronts.values())).tolist()))
    named = range(len(table)) if len(table) <= MOST_LETTERS else members[:MOST_NAMED]
    letters = dict(zip(named, string.ascii_uppercase, strict=False))
    names = [f"{letter}: {plain(table['configuration'].iloc[place])}" for place, letter in letters.items()]
    if left := len(set(members) - set(named)):
        names.append(f"{left} more are not beaten")
    figure, axes = panels(len(costs), 3.6, 3.4 + 0.16 * math.ceil(len(names) / len(costs)), sharey=True)
    y, low, high = (table[board.metric + end].to_numpy(float) for end in ("", "_low", "_high"))
    for panel, name in zip(axes, costs, strict=True):
        x, front = table[name].to_numpy(float), fronts[name]
        others = np.setdiff1d(np.arange(len(table)), front)
        panel.vlines(x, low, high, color="lightgrey", linewidth=0.8, zorder=0)
        panel.plot(x[others], y[others], "o", color="grey", fillstyle="none", markersize=5, label="beaten")
        panel.step(x[front], y[front], where="post", color="black", linewidth=0.8)
        panel.plot(x[front], y[front], "o", color="black", markersize=5, label="not beaten")
        for place, letter in letters.items():
            if np.isfinite(x[place]) and np.isfinite(y[place]):
                shape = {"weight": "bold"} if place in front else {"color": "dimgrey", "fontsize": 7}
                panel.annotate(letter, (x[place], y[place]), (4, 4), textcoords="offset points", **shape)
        seen = x[np.isfinite(x)]
        set_ticks(panel, seen.tolist(), is_wide(seen) or (name in LOGARITHMIC and seen.min() > 0))
        panel.margins(x=0.12, y=0.12)
        panel.set_xlabel(COST_NAMES[name])
    axes[0].set_ylabel(board.metric)
    axes[0].legend(loc="best")
    blank = [Line2D([], [], linestyle="none")] * len(names)
    figure.legend(blank, names, loc="outside lower left", ncols=len(costs), handlelength=0, handletextpad=0)
    return figure


def _front(board: Leaderboard, cost: str) -> NDArray[Any]:
    """Return the places in the leaderboard of what nothing beats, by cost."""
    table = board.table[board.table["rank"].notna()]
    x, y = table[cost].to_numpy(float), table[board.metric].to_numpy(float)
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    front = finite[pareto_front(x[finite], y[finite], is_better_higher(board.metric))]
    return np.asarray(front[np.argsort(x[front], kind="stable")])
