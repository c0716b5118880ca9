"""Intervals and p-values of each configuration and each difference."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare import significance
from sentexp.compare.bootstrap import Interval, bca, half_width, percentile, replicate
from sentexp.compare.comparison import Comparison, Configuration
from sentexp.compare.metric_sums import Measured, measured
from sentexp.compare.sample_size import ALPHA, POWER
from sentexp.config.metric_names import METRICS, is_score


@dataclass(kw_only=True, slots=True)
class Evidence:
    """The metrics of some configurations on the same rows, and on resamples of them.

    `values` hold, by metric, the value of each run, by configuration; `replicates` the mean over the runs of a
    configuration on every resample, shape (configurations, resamples). `right` are the rows that the first run of each
    gets right, none of scores.
    """

    configurations: list[Configuration]
    values: list[dict[str, NDArray[Any]]]
    replicates: dict[str, NDArray[Any]]
    without_each: list[dict[str, NDArray[Any]]]
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
        by_seeds = float(self._seed_parts(metric)[number])
        if by_seeds > 0:
            half = half_width(float(np.nanvar(replicates)), by_seeds, self.seed_freedom(), self.confidence)
            return Interval(value, value - half, value + half)
        if len(self.values[number][metric]) == 1:
            return bca(value, replicates, self.without_each[number][metric], self.confidence)
        return percentile(value, replicates, self.confidence)

    def difference(self, number: int, other: int, metric: str) -> Interval:
        """Return by how much a configuration is above another on the same rows, with the interval; none to itself."""
        if number == other:
            return Interval(0.0, np.nan, np.nan)
        value = self.value(number, metric) - self.value(other, metric)
        gaps = self.replicates[metric][number] - self.replicates[metric][other]
        by_seeds = self._seed_variance(number, other, metric)
        if by_seeds == 0:
            return percentile(value, gaps, self.confidence)
        half = half_width(float(np.nanvar(gaps)), by_seeds, self.seed_freedom(), self.confidence)
        return Interval(value, value - half, value + half)

    def p_values(self, metric: str) -> NDArray[Any]:
        """Return the p-values of every two configurations, not corrected, shape (configurations, configurations).

        McNemar's exact test for accuracies of single runs; else a test of the difference over its standard error, by
        the paired resamples and, where there are several seeds, by these.
        """
        if metric == "accuracy" and self.seed_freedom() == 0:
            return significance.mcnemar(self.right)
        count = len(self.configurations)
        values = np.array([self.value(number, metric) for number in range(count)])
        parts = self._seed_parts(metric)
        p = np.ones((count, count))
        for i in range(1, count):
            by_rows = np.nanvar(self.replicates[metric][i] - self.replicates[metric][:i], axis=1)
            gaps, by_seeds = values[i] - values[:i], parts[i] + parts[:i]
            p[i, :i] = p[:i, i] = significance.t_test(gaps, by_rows, by_seeds, self.seed_freedom())
        return p

    def seed_freedom(self) -> int:
        """Return the degrees of freedom that seeds have: how many there are beyond one for each configuration."""
        return sum(len(one.runs) - 1 for one in self.configurations)

    def detectable(self, number: int, other: int, metric: str) -> float:
        """Return the smallest difference of two such configurations that these rows show in four of five times."""
        return _margin() * float(
            np.sqrt(self._row_variance(number, other, metric) + self._seed_variance(number, other, metric))
        )

    def rows_to_settle(self, number: int, other: int, metric: str) -> float:
        """Return how many rows would show the difference that was found, in four of five times; infinite: none do."""
        gap = abs(self.value(number, metric) - self.value(other, metric))
        room = (gap / _margin()) ** 2 - self._seed_variance(number, other, metric)
        rows = self.right.shape[1]
        return rows * self._row_variance(number, other, metric) / room if room > 0 else np.inf

    def _row_variance(self, number: int, other: int, metric: str) -> float:
        return float(np.nanvar(self.replicates[metric][number] - self.replicates[metric][other]))

    def _seed_variance(self, number: int, other: int, metric: str) -> float:
        """Return what seeds add to the variance of a difference of two."""
        parts = self._seed_parts(metric)
        return float(parts[number] + parts[other])

    def _seed_parts(self, metric: str) -> NDArray[Any]:
        """Return what seeds add to the variance of each: alike in all configurations, nothing in baselines."""
        freedom = self.seed_freedom()
        if freedom == 0:
            return np.zeros(len(self.configurations))
        each = sum(float(np.var(one[metric])) * len(one[metric]) for one in self.values) / freedom
        return np.array([0.0 if one.baseline else each / len(one.runs) for one in self.configurations])


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
            runs.append(measured(targets, probabilities, metrics))
        said = configuration.runs[0].probabilities[chosen]
        right.append(np.zeros(len(targets), bool) if is_score(comparison.labels) else said.argmax(1) == targets)
    by_run = replicate(runs, len(targets), resamples, seed)
    ends = np.cumsum([len(one.runs) for one in configurations])
    spans = [range(end - len(one.runs), end) for one, end in zip(configurations, ends, strict=True)]
    on_all_rows = [run.whole() for run in runs]
    return Evidence(
        configurations=list(configurations),
        values=[{metric: np.array([on_all_rows[n][metric] for n in span]) for metric in by_run} for span in spans],
        replicates={
            metric: np.stack([by_resample[span].mean(0) for span in spans]) for metric, by_resample in by_run.items()
        },
        without_each=[runs[span[0]].without_each() if len(span) == 1 < resamples else {} for span in spans],
        right=np.stack(right),
        confidence=confidence,
    )


def _margin() -> float:
    """Return how many standard errors a difference must have to be found with `POWER` at `ALPHA`."""
    from scipy.stats import norm

    return float(norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER))
