"""Pictures of a run, its data, learning curve and confusion matrix, and of a search."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.plots import charts
from sentexp.plots.style import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]


def draw_learning_curve(
    train_loss: Curve,
    validation_loss: Curve,
    accuracy: Curve,
    file: Path,
    metric: str = "accuracy",
    loss: str = "cross-entropy",
) -> None:
    """Draw loss and validation accuracy, or another metric, over optimizer steps.

    Args:
        train_loss: (step, value) pairs.
        validation_loss: (step, value) pairs.
        accuracy: (step, value) pairs of the validation split.
        file: the PNG to write.
        metric: the name of what is in the place of the accuracy.
        loss: what the loss is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    _line(left, train_loss, "train", "-", None)
    _line(left, validation_loss, "validation", "--", "o")
    left.set(
        title="Loss",
        xlabel="optimizer step",
        ylabel=loss,
        ylim=(0, None),
    )
    if train_loss or validation_loss:
        left.legend()
    _line(right, accuracy, "validation", "--", "o")
    limits = (0, None) if metric == "rmse" else (None, 1)
    right.set(title=f"Validation {metric}", xlabel="optimizer step", ylim=limits)
    figure.savefig(file, dpi=120)


def draw_confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], file: Path) -> None:
    """Draw counts of true labels (rows) against predicted labels (columns), shaded by share of the row."""
    from matplotlib.figure import Figure

    size = 2.5 + 0.8 * len(labels)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    charts.draw_confusion(axes, np.array(counts), labels)
    axes.set(xlabel="predicted", ylabel="true", title="Test split")
    figure.savefig(file, dpi=120)


def draw_scores(true: NDArray[Any], predicted: NDArray[Any], file: Path) -> None:
    """Draw predicted scores over true ones, shape (rows,); on the diagonal they are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    charts.draw_scores(axes, true, predicted)
    axes.set(xlabel="true score", ylabel="predicted score", title="Test split")
    figure.savefig(file, dpi=120)


def draw_labels(scores: Mapping[str, tuple[float, float, float]], file: Path) -> None:
    """Draw precision, recall and F1 of each label of the test split, the best label on top.

    Args:
        scores: precision, recall and F1 by label.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.5 + 0.3 * len(scores)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(scores.items(), key=lambda item: item[1][2])
    places = range(len(ordered))
    axes.barh(places, [f1 for _, (_, _, f1) in ordered], color="lightgrey", label="F1")
    axes.plot([precision for _, (precision, _, _) in ordered], places, "k|", markersize=9, label="precision")
    axes.plot([recall for _, (_, recall, _) in ordered], places, "ko", fillstyle="none", label="recall")
    axes.set_yticks(places, [plain(label) for label, _ in ordered])
    axes.set(title="Labels, test split", xlim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=120)


def draw_search(
    points: Sequence[tuple[int, Sequence[float], bool]], objectives: Sequence[str], higher: Sequence[bool], file: Path
) -> None:
    """Draw a search: the objective over the trials, with the best so far; or two objectives against each other.

    Args:
        points: number of a trial, its values, and whether no other beats it.
        objectives: their names; of more than two the first two are drawn.
        higher: for each objective, whether more is better.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    if len(objectives) == 1:
        numbers, values = [point[0] for point in points], [point[1][0] for point in points]
        best = list(itertools.accumulate(values, max if higher[0] else min))
        axes.plot(numbers, values, "o", color="black", fillstyle="none", label="trial")
        axes.step(numbers, best, where="post", color="black", label="best so far")
        axes.set(xlabel="trial", ylabel=objectives[0])
    else:
        for label, fill, beaten in (("beaten by another", "none", False), ("not beaten", "full", True)):
            chosen = [values for _, values, best_there in points if best_there is beaten]
            x, y = [values[1] for values in chosen], [values[0] for values in chosen]
            axes.plot(x, y, "o", color="black", fillstyle=fill, label=label)
        axes.set(xlabel=objectives[1], ylabel=objectives[0])
    axes.legend()
    figure.savefig(file, dpi=120)


def draw_reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]], file: Path) -> None:
    """Draw accuracy over confidence, and how many rows have it; on the diagonal, probabilities are what they say.

    Args:
        curves: by name, (mean confidence, accuracy, rows) of each bin.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    columns = {name: np.array(bins).T for name, bins in curves.items()}
    drawn = {
        name: charts.Reliability(confidence=confidence, accuracy=accuracy, rows=rows)
        for name, (confidence, accuracy, rows) in columns.items()
    }
    charts.draw_reliability(top, bottom, drawn)
    top.set(title="Reliability, test split", ylabel="accuracy", xlim=(0, 1.02))
    bottom.set(xlabel="confidence: the largest probability", ylabel="rows")
    figure.savefig(file, dpi=120)


def draw_data(
    counts: Mapping[str, Mapping[str, int]],
    edges: Sequence[int],
    histograms: Mapping[str, Sequence[int]],
    max_length: int,
    file: Path,
) -> None:
    """Draw the shares of the labels and the lengths of the texts, for each split.

    Args:
        counts: rows by split and label.
        edges: of the bins of the histogram, in tokens.
        histograms: rows in each bin, by split.
        max_length: where texts are cut, in tokens.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = dict(zip(counts, (("black", "-"), ("dimgrey", "--"), ("darkgrey", ":")), strict=False))
    width = 0.8 / len(counts)
    for place, (split, labels) in enumerate(counts.items()):
        total = max(1, sum(labels.values()))
        middles = [index + (place - (len(counts) - 1) / 2) * width for index in range(len(labels))]
        shares = [count / total for count in labels.values()]
        left.bar(middles, shares, width, color=styles[split][0], label=f"{split} ({total:,})")
    names = list(map(plain, next(iter(counts.values()))))
    fits = len(names) <= 5 and sum(map(len, names)) <= 40  # noqa: PLR2004 (letters of the width)
    left.set_xticks(range(len(names)), names, rotation=0 if fits else 30)
    left.set(title="Labels", ylabel="share of the split", ylim=(0, 1.25 * left.get_ylim()[1]))
    left.legend(loc="upper center", ncols=3, fontsize="small", handlelength=1, columnspacing=1)
    for split, histogram in histograms.items():
        total = max(1, sum(histogram))
        color, style = styles[split]
        right.stairs([count / total for count in histogram], edges, color=color, linestyle=style, label=split)
    if max_length < edges[-1]:
        right.axvline(max_length, color="black", linewidth=0.8)
        right.annotate("cut", (max_length, right.get_ylim()[1]), va="top", ha="left")
    # The last bin holds all that is longer, and goes beyond the picture.
    right.set(
        title="Lengths", xlabel="tokens", ylabel="share of the split", xlim=(0, max(edges[-2], max_length) * 1.05)
    )
    right.legend()
    figure.savefig(file, dpi=120)


def _line(axes: "Axes", points: Curve, label: str, style: str, marker: str | None) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, style, color="black", marker=marker, label=label, linewidth=1)
