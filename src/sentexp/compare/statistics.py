"""Intervals and p-values of each configuration and each difference."""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare import rows_and_seeds, significance
from sentexp.compare.bootstrap import Interval, acceleration, bca, percentile, replicate
from sentexp.compare.comparison import Comparison, Configuration, Scored
from sentexp.compare.metric_sums import Measured, measured
from sentexp.config import TargetKind
from sentexp.config.metric_names import METRICS
from sentexp.tracking.predictions import holds


@dataclass(kw_only=True, slots=True)
class Evidence:
    """The metrics of some configurations on the same rows, and on resamples of them.

    `values` hold, by metric, the value of each run, by configuration; `replicates` the mean over the runs of a
    configuration on every resample, shape (configurations, resamples). `between_seeds` is the variance that the rows
    add to a run beside the other seeds of its configuration, and `seed_variance` the variance between these runs, both
    pooled over all configurations; `shares` are what part of the latter each configuration has: the less the more
    runs, baselines none. `seed_freedom` are the degrees of freedom that seeds have: how many there are beyond one for
    each configuration. `accelerations` are those of the metrics of configurations with one run. `right` are the rows
    that the first run of each gets right, none of scores.
    """

    configurations: list[Configuration]
    values: list[dict[str, NDArray[Any]]]
    replicates: dict[str, NDArray[Any]]
    between_seeds: dict[str, float]
    seed_variance: dict[str, float]
    seed_freedom: int
    shares: NDArray[Any]
    accelerations: list[dict[str, float]]
    right: NDArray[Any]
    confidence: float

    def value(self, number: int, metric: str) -> float:
        """Return the mean of a metric over the seeds of a configuration."""
        return float(self.values[number][metric].mean())

    def interval(self, number: int, metric: str) -> Interval:
        """Return a metric of a configuration with its interval: over rows, and over seeds where any has several.

        The between-seed variance is pooled over all configurations, so the interval of a configuration with a single
        seed includes it too.
        """
        value, replicates = self.value(number, metric), self.replicates[metric][number]
        by_rows, by_seeds = self._variances(replicates, self.shares[number], metric)
        if by_seeds > 0:
            half = float(rows_and_seeds.half_width(by_rows, by_seeds, self.seed_freedom, self.confidence))
            return Interval(value, value - half, value + half)
        if len(self.values[number][metric]) == 1:
            return bca(value, replicates, self.accelerations[number][metric], self.confidence)
        return percentile(value, replicates, self.confidence)

    def difference(self, number: int, other: int, metric: str) -> Interval:
        """Return by how much a configuration is above another on the same rows, with the interval; none to itself."""
        if number == other:
            return Interval(0.0, np.nan, np.nan)
        value = self.value(number, metric) - self.value(other, metric)
        gaps = self.replicates[metric][number] - self.replicates[metric][other]
        by_rows, by_seeds = self._variances(gaps, self.shares[[number, other]].sum(), metric)
        if by_seeds == 0:
            return percentile(value, gaps, self.confidence)
        half = float(rows_and_seeds.half_width(by_rows, by_seeds, self.seed_freedom, self.confidence))
        return Interval(value, value - half, value + half)

    def p_values(self, metric: str) -> NDArray[Any]:
        """Return the p-values of every two configurations, not corrected, shape (configurations, configurations).

        McNemar's exact test for (subset) accuracies of single runs; else a test of the difference by its variance over
        the paired resamples and, where there are several seeds, over these.
        """
        if metric in ("accuracy", "subset_accuracy") and self.seed_freedom == 0:
            return significance.mcnemar(self.right)
        count = len(self.configurations)
        values = np.array([self.value(number, metric) for number in range(count)])
        shares, replicates = self.shares, self.replicates[metric]
        p = np.ones((count, count))
        for i in range(1, count):
            by_rows, by_seeds = self._variances(replicates[i] - replicates[:i], shares[i] + shares[:i], metric)
            p[i, :i] = p[:i, i] = rows_and_seeds.p_value(values[i] - values[:i], by_rows, by_seeds, self.seed_freedom)
        return p

    def detectable(self, number: int, other: int, metric: str, times: float = 1.0) -> float:
        """Return the smallest difference of two such configurations that is found in four of five cases.

        Args:
            number: of a configuration.
            other: of another.
            metric: that is compared.
            times: as many rows as there are.
        """
        gaps = self.replicates[metric][number] - self.replicates[metric][other]
        share = self.shares[[number, other]].sum()
        by_rows, by_seeds = self._variances(gaps, share, metric)
        fewer = min(by_seeds, self.between_seeds[metric] * share) * (1 - 1 / times)
        return rows_and_seeds.detectable(float(by_rows) / times, float(by_seeds - fewer), self.seed_freedom)

    def rows_to_settle(self, number: int, other: int, metric: str) -> float:
        """Return how many rows would show the difference that was found, in four of five cases; infinite: none do."""
        from scipy.optimize import brentq

        gap = abs(self.value(number, metric) - self.value(other, metric))

        def lacking(log: float) -> float:
            return self.detectable(number, other, metric, np.exp(log)) - gap

        fewest, most = -30.0, 60.0
        if not lacking(most) < 0:  # nor where the metric is not a number
            return np.inf
        times = np.exp(brentq(lacking, fewest, most, xtol=1e-3)) if lacking(fewest) > 0 else 0.0
        return float(times * self.right.shape[1])

    def _variances(
        self, replicates: NDArray[Any], shares: NDArray[Any] | float, metric: str
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the variance of values, or of differences, that rows cause in all seeds alike, and that of the seeds.

        A model of rows and seeds, both random: `replicates` vary by what the rows do to all seeds, and to each seed
        apart; so do runs that differ in their seed by the latter, which must not count twice.

        Args:
            replicates: shape (..., resamples).
            shares: what part of the variance of a single run seeds add to them.
            metric: whose replicates they are.
        """
        alike = _variance(replicates) - self.between_seeds[metric] * np.asarray(shares)
        return np.maximum(alike, 0.0), self.seed_variance[metric] * np.asarray(shares)


def measure_configurations(
    comparison: Comparison,
    configurations: Sequence[Configuration],
    resamples: int,
    seed: int,
    confidence: float,
    rows: NDArray[Any] | None = None,
    metrics: Collection[str] = METRICS,
) -> Evidence:
    """Measure configurations on the rows of a comparison, or on some of them.

    Args:
        comparison: whose rows these are.
        configurations: of it.
        resamples: of the bootstrap; 1 gives values without intervals.
        seed: of the resamples.
        confidence: of the intervals.
        rows: a mask, shape (rows,); None is all of them.
        metrics: names; others are not computed.
    """
    chosen = slice(None) if rows is None else rows
    targets = comparison.targets[chosen]
    runs: list[Measured] = []
    right = []
    for configuration in configurations:
        for run in configuration.runs:
            probabilities = run.probabilities[chosen]
            runs.append(measured(targets, probabilities, metrics, run.thresholds))
        right.append(_right(comparison, configuration.runs[0])[chosen])
    by_run = replicate(runs, len(targets), resamples, seed)
    ends = np.cumsum([len(one.runs) for one in configurations])
    spans = [range(end - len(one.runs), end) for one, end in zip(configurations, ends, strict=True)]
    on_all_rows = [run.whole() for run in runs]
    values = [{metric: np.array([on_all_rows[n][metric] for n in span]) for metric in by_run} for span in spans]
    freedom = sum(len(span) - 1 for span in spans)
    return Evidence(
        configurations=list(configurations),
        values=values,
        replicates={
            metric: np.stack([by_resample[span].mean(0) for span in spans]) for metric, by_resample in by_run.items()
        },
        between_seeds={metric: _between_seeds(by_resample, spans) for metric, by_resample in by_run.items()},
        seed_variance={metric: _seed_variance([one[metric] for one in values], freedom) for metric in by_run},
        seed_freedom=freedom,
        shares=np.array([0.0 if one.baseline else 1 / len(one.runs) for one in configurations]),
        accelerations=[_accelerations(runs[span[0]]) if len(span) == 1 < resamples else {} for span in spans],
        right=np.stack(right),
        confidence=confidence,
    )


def _right(comparison: Comparison, run: Scored) -> NDArray[Any]:
    """Return which rows a run gets right, of sets of labels those with all of them, shape (rows,)."""
    targets, said = comparison.targets, run.probabilities
    if comparison.kind is TargetKind.scores:
        return np.zeros(len(targets), bool)
    if run.thresholds is not None:
        exact: NDArray[Any] = (holds(said, run.thresholds) == targets).all(1)
        return exact
    right: NDArray[Any] = said.argmax(1) == targets
    return right


def _accelerations(run: Measured) -> dict[str, float]:
    return {metric: acceleration(values) for metric, values in run.without_each().items()}


def _variance(replicates: NDArray[Any]) -> NDArray[Any]:
    """Return the variance over resamples; not a number where none has the metric, as of constant scores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Degrees of freedom <= 0")
        variance: NDArray[Any] = np.asarray(np.nanvar(replicates, axis=-1))
    return variance


def _between_seeds(replicates: NDArray[Any], spans: Sequence[range]) -> float:
    """Return the variance over resamples of a run less the mean of its configuration, unbiased, pooled.

    Args:
        replicates: of each run, shape (runs, resamples).
        spans: the runs of each configuration.
    """
    freedom = sum(len(span) - 1 for span in spans)
    apart = (replicates[span] - replicates[span].mean(0) for span in spans)
    return sum(float(np.nansum(_variance(each))) for each in apart) / freedom if freedom else 0.0


def _seed_variance(values: Sequence[NDArray[Any]], freedom: int) -> float:
    """Return the variance between runs that differ in their seed, pooled over all configurations."""
    squares = sum(float(np.var(each)) * len(each) for each in values)
    return squares / freedom if freedom else 0.0
