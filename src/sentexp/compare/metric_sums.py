"""The metrics of weighted rows: of every resample of the same rows at once.

Each metric is a function of sums over rows. So a matrix of weights, one row for each resample, times a matrix of what
each example adds gives the sums of all resamples in one product; the rest is arithmetic on small arrays.

The area under the ROC curve is a mean over pairs of rows. It is split as Hoeffding (1948) does: into means over the
rows of either side, which are sums like the others, and a remainder over pairs, which is of the order 1 / rows. The
remainder is computed where the rows are few, and left out where they are many.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.score_sums import from_score_sums, score_features
from sentexp.config.metric_names import BINS, METRICS

SMALLEST = 1e-30
"""Of a probability, before its logarithm."""
FEW_ROWS = 2000
"""Up to here the area's remainder over pairs is computed; beyond, it changes an interval by less than 1 %."""
AREA = "auroc_macro"
SUMS = {
    "loss": ("loss",),
    "accuracy": ("right",),
    AREA: ("support", "sides"),
    "f1_macro": ("support", "said", "right"),
    "precision_macro": ("support", "said", "right"),
    "recall_macro": ("support", "right"),
    "ece": ("gaps",),
    "brier": ("brier",),
    "mae": ("distance",),
    "qwk": ("support", "said", "squared"),
    "within_one": ("near",),
}
"""What each metric is made of, beside the number of rows."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What the rows of a run add to its metrics.

    `features` are float32, shape (rows, sums); `pairs` hold the area's remainder for each class against the rest.
    The sums are, in order: the rows, the loss, the Brier score; for each class its rows, how often it was predicted,
    and how often rightly; for each class the two sides of its area; for each bin of the calibration error, confidence
    minus correctness; the distance of the answer in steps of classes, its square, and whether it is one at most. Those
    that none of `metrics` needs are 0.
    """

    classes: int
    features: NDArray[Any]
    pairs: "list[Pairs]"
    metrics: tuple[str, ...] = METRICS

    def __call__(self, weights: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return every metric of every resample, by name, shape (resamples,).

        Args:
            weights: float32, shape (resamples, rows).
        """
        return {name: values[0] for name, values in resampled([self], weights).items()}

    def whole(self) -> dict[str, float]:
        """Return every metric of the rows as they are, in the order of `METRICS`."""
        values = from_sums(self.features.sum(0, dtype=np.float64), self.classes, self.metrics)
        return {name: float(values[name]) for name in self.metrics}

    def without_each(self) -> dict[str, NDArray[Any]]:
        """Return every metric of the rows without one of them, by name, shape (rows,): the jackknife."""
        left = np.subtract(self.features.sum(0, dtype=np.float64), self.features, order="F")
        return from_sums(left, self.classes, self.metrics)


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
        return _over(added, total)


def resampled(runs: Sequence[Measured], weights: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return every metric of runs on the same rows on every resample, by name, shape (runs, resamples).

    The sums of all runs are one product, without those to which no row adds: a wide product is faster than narrow ones.

    Args:
        runs: of the same metrics.
        weights: float32, shape (resamples, rows).
    """
    classes, width = runs[0].classes, runs[0].features.shape[1]
    used = np.flatnonzero(np.any([run.features.any(0) for run in runs], axis=0))
    features = np.concatenate([run.features[:, used] for run in runs], axis=1)
    sums = np.zeros((width, len(weights), len(runs)), np.float32)
    sums[used] = (weights @ features).reshape(len(weights), len(runs), len(used)).transpose(2, 0, 1)
    remainder = None
    if all(run.pairs for run in runs):
        each = [[pairs.remainder(weights) for pairs in run.pairs] for run in runs]
        remainder = np.asarray(each, np.float32).transpose(2, 0, 1)
    by_metric = from_sums(np.moveaxis(sums, 0, -1), classes, runs[0].metrics, remainder)
    return {name: values.T for name, values in by_metric.items()}


def measured(targets: NDArray[Any], probabilities: NDArray[Any], metrics: Collection[str] = METRICS) -> Measured:
    """Return what rows add to the metrics.

    Args:
        targets: class indices, or scores, shape (rows,).
        probabilities: shape (rows, classes); of one class they are scores.
        metrics: that are wanted; others cost nothing.
    """
    rows, classes = probabilities.shape
    if classes == 1:
        features = score_features(targets, probabilities[:, 0])
        return Measured(classes=1, features=features, pairs=[], metrics=tuple(metrics))
    predicted = probabilities.argmax(1)
    right = predicted == targets
    each = np.arange(rows)
    truth, answered = np.zeros((2, rows, classes), np.float32)
    truth[each, targets], answered[each, predicted] = 1, 1
    loss = -np.log(np.maximum(probabilities[each, targets], SMALLEST))
    brier = np.square(probabilities - truth).sum(1)
    confidence = probabilities[each, predicted]
    gaps = np.zeros((rows, BINS + 1), np.float32)
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    gaps[each, np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1] = confidence - right
    sides, pairs = _areas(targets, probabilities) if AREA in metrics else (np.zeros((rows, 2 * classes)), [])
    parts = {"loss": loss[:, None], "brier": brier[:, None]}
    distance = np.abs(predicted - targets)[:, None].astype(np.float32)
    distances = {"distance": distance, "squared": distance**2, "near": distance <= 1}
    parts |= {
        "support": truth,
        "said": answered,
        "right": truth * right[:, None],
        "sides": sides,
        "gaps": gaps,
    } | distances
    needed = set().union(*(SUMS[name] for name in metrics))
    kept = [part if name in needed else np.zeros_like(part) for name, part in parts.items()]
    return Measured(
        classes=classes,
        features=np.concatenate([np.ones((rows, 1)), *kept], 1, dtype=np.float32),
        pairs=pairs,
        metrics=tuple(metrics),
    )


def from_sums(
    sums: NDArray[Any], classes: int, metrics: Collection[str] = METRICS, remainder: NDArray[Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Return metrics by name, shape (...).

    The macro averages are over the classes that have rows (law 5); a class that was never predicted has precision 0,
    and one without a rest has no area.

    Args:
        sums: see `Measured`, weighted, shape (..., sums); fastest where the rows of each sum lie side by side.
        classes: how many.
        metrics: that are wanted.
        remainder: of the areas, shape (..., classes).
    """
    if classes == 1:
        return from_score_sums(sums, metrics)
    rows, loss, brier = sums[..., 0], sums[..., 1], sums[..., 2]
    support, answered, right, ours, theirs = (sums[..., 3 + n * classes : 3 + (n + 1) * classes] for n in range(5))
    gaps = sums[..., 3 + 5 * classes : 4 + 5 * classes + BINS]
    distance, squared, near = (sums[..., 4 + 5 * classes + BINS + place] for place in range(3))
    rest = rows[..., None] - support

    def area() -> NDArray[Any]:
        areas = _over(ours, support) + _over(theirs, rest)
        return _mean(areas if remainder is None else areas + remainder, (support > 0) & (rest > 0))

    made: dict[str, Callable[[], NDArray[Any]]] = {
        "loss": lambda: loss / rows,
        "accuracy": lambda: right.sum(-1) / rows,
        AREA: area,
        "f1_macro": lambda: _mean(_over(2 * right, support + answered), support > 0),
        "precision_macro": lambda: _mean(_over(right, answered), support > 0),
        "recall_macro": lambda: _mean(_over(right, support), support > 0),
        "ece": lambda: np.abs(gaps).sum(-1) / rows,
        "brier": lambda: brier / rows,
        "mae": lambda: distance / rows,
        "qwk": lambda: _weighted_kappa(support, answered, squared, rows),
        "within_one": lambda: near / rows,
    }
    return {name: made[name]() for name in metrics}


def _weighted_kappa(
    support: NDArray[Any], answered: NDArray[Any], squared: NDArray[Any], rows: NDArray[Any]
) -> NDArray[Any]:
    """Return 1 less the squared distances over those that chance has, with as many rows and answers of each class."""
    steps = np.arange(support.shape[-1], dtype=np.float64)
    means = (support @ steps) * (answered @ steps) / rows
    chance = support @ steps**2 + answered @ steps**2 - 2 * means
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: NDArray[Any] = np.where(chance > 0, 1 - squared / chance, np.nan)
    return kappa


def _over(above: NDArray[Any], below: NDArray[Any]) -> NDArray[Any]:
    """Return the ratio; 0 where there is nothing to divide by."""
    ratio: NDArray[Any] = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio


def _mean(values: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over the classes that count; not a number where none does."""
    with np.errstate(invalid="ignore"):
        mean: NDArray[Any] = np.where(counts, values, 0).sum(-1) / counts.sum(-1)
    return mean


def _areas(targets: NDArray[Any], probabilities: NDArray[Any]) -> tuple[NDArray[Any], list[Pairs]]:
    """Return the two sides of the area of each class, shape (rows, 2 classes), and its remainders, if rows are few."""
    rows, classes = probabilities.shape
    sides = np.zeros((rows, 2 * classes), np.float32)
    pairs = []
    for n in range(classes):
        members, rest = np.flatnonzero(targets == n), np.flatnonzero(targets != n)
        if len(members) and len(rest):
            sides[members, n], sides[rest, classes + n] = _sides(probabilities[members, n], probabilities[rest, n])
            pairs.append(_pairs(probabilities[:, n], members, rest, sides[:, n] + sides[:, classes + n]))
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
