"""The leaderboard: every metric with its interval, ranks that ties share, differences, costs."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare import significance
from sentexp.compare.comparison import BASES, Comparison, Configuration
from sentexp.compare.statistics import Evidence, measure_configurations
from sentexp.config import TargetKind, check_measure
from sentexp.config.metric_names import ORDERED_METRICS, is_better_higher
from sentexp.config.target_kind import measured_kind
from sentexp.errors import listed, require

if TYPE_CHECKING:
    import pandas as pd

COSTS = {
    "seconds": "train/seconds",
    "peak_memory_gib": "peak_memory_gib",
    "trainable_parameters": "parameters/trainable",
    "saved_mib": "saved_mib",
}
"""Costs of a run by column, and the metrics that hold them."""
CHEAPEST = {
    "saved_mib": "takes least on disk ({:.3g} MiB)",
    "seconds": "trains fastest ({:,.0f} s)",
    "peak_memory_gib": "takes least memory ({:.3g} GiB)",
}
"""Words for what has the smallest of a cost."""
ANSWERS = {"off_label_mass": "test/off_label_mass", "irregular_outputs": "test/irregular_outputs"}
CALIBRATION = {
    "temperature": "temperature",
    "ece_calibrated": "test/ece_calibrated",
    "brier_calibrated": "test/brier_calibrated",
}


@dataclass(kw_only=True, slots=True)
class Leaderboard:
    """Configurations by rank, and baselines below them.

    `table` has a row for each, with columns `rank` (missing for baselines), `configuration`, `seeds`, the metrics with
    `<metric>_low` and `<metric>_high`, `to_best` and `to_base` with their ends and p-values (raw, `_holm`, `_bh`),
    costs, calibration and answers, `run_ids`. `evidence` has the configurations in the order of the comparison.
    """

    kind: TargetKind
    metric: str
    metrics: tuple[str, ...]
    confidence: float
    base: str | None
    table: "pd.DataFrame"
    evidence: Evidence
    notes: list[str] = field(default_factory=list)

    @property
    def short(self) -> tuple[str, ...]:
        """The metrics of short tables."""
        return self.kind.short

    @property
    def level(self) -> str:
        """The confidence as people read it: 95%."""
        return f"{100 * self.confidence:g}%"


def leaderboard(
    comparison: Comparison,
    metric: str = "accuracy",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    base: str | None = None,
) -> Leaderboard:
    """Rank the configurations of a comparison.

    Every two of them are compared, and the p-values corrected for all these comparisons by Holm's method: so rank 1
    holds the truly best configuration with a chance of at least `confidence`, however many there are.

    Args:
        comparison: see `sentexp.compare.load`.
        metric: that ranks.
        confidence: of all intervals, and of the ranks.
        resamples: of the bootstrap.
        seed: of the resamples.
        base: what differences are taken to: a baseline or a configuration by name, or a run's id.

    Raises:
        UserError: there is no such base or metric.
    """
    import pandas as pd

    check_measure(metric, confidence, resamples)
    metrics = metrics_of(comparison, metric)
    evidence = measure_configurations(comparison, comparison.everything(), resamples, seed, confidence, metrics=metrics)
    count = len(comparison.configurations)
    p = evidence.p_values(metric)
    corrected = {method: significance.correct(p[:count, :count], method) for method in ("holm", "fdr_bh")}
    values = np.array([evidence.value(number, metric) for number in range(count)])
    higher = is_better_higher(metric)
    ranks = significance.ranks(values, corrected["holm"], higher, 1 - confidence)
    order = [int(number) for number in np.lexsort((-values if higher else values, ranks))]
    best, base_number = order[0], _base(comparison, base)
    to_base = _against(p, base_number, count)
    rows = []
    for number in [*order, *range(count, len(evidence.configurations))]:
        one = evidence.configurations[number]
        row: dict[str, Any] = {"rank": int(ranks[number]) if number < count else None, "configuration": one.name}
        row["seeds"] = len(one.runs)
        for name in metrics:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = evidence.interval(number, name)
        if number < count:
            row |= _difference(evidence, number, best, metric, "to_best")
            row["to_best_p"] = p[number, best]
            row |= {f"to_best_p_{m.removeprefix('fdr_')}": matrix[number, best] for m, matrix in corrected.items()}
        if base_number is not None and number < count:
            row |= _difference(evidence, number, base_number, metric, "to_base")
            row |= {f"to_base_p{name}": column[number] for name, column in to_base.items()}
        rows.append(row | _recorded(one) | {"run_ids": [run.run_id for run in one.runs]})
    table = pd.DataFrame(rows).astype({"rank": "Int64"})
    board = Leaderboard(
        kind=comparison.kind,
        metric=metric,
        metrics=metrics,
        confidence=confidence,
        base=None if base_number is None else evidence.configurations[base_number].name,
        table=table,
        evidence=evidence,
    )
    board.notes = [*comparison.notes, *_findings(board, order, comparison), *_cheapest(table)]
    return board


def metrics_of(comparison: Comparison, metric: str) -> tuple[str, ...]:
    """Return what is measured: also the metrics of ordered classes where one ranks, or where all runs say so.

    Raises:
        UserError: the metric is of classes, for instance, and the runs predict scores.
    """
    kind = comparison.kind
    of_classes = kind is TargetKind.classes
    legal = (*kind.compared, *ORDERED_METRICS) if of_classes else kind.compared
    require(
        metric in legal,
        f"metric={metric} measures {measured_kind(metric).value}, and these runs predict {kind.value}: use "
        f"{', '.join(legal)}.",
    )
    if not of_classes:
        return kind.compared
    runs = [run for one in comparison.configurations for run in one.runs]
    ordered = metric in ORDERED_METRICS or all(str(run.settings.get("data.ordered")) == "True" for run in runs)
    return legal if ordered else kind.compared


def _difference(evidence: Evidence, number: int, other: int, metric: str, name: str) -> dict[str, float]:
    value, low, high = evidence.difference(number, other, metric)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _against(p: NDArray[Any], base: int | None, count: int) -> dict[str, Any]:
    """Return the p-values of the configurations against the base, raw and corrected for these comparisons."""
    if base is None:
        return {}
    others = [number for number in range(count) if number != base]
    columns = {"": p[:count, base].copy()}
    for suffix, method in (("_holm", "holm"), ("_bh", "fdr_bh")):
        column = np.ones(count)
        column[others] = significance.correct(p[others, base], method)
        columns[suffix] = column
    return columns


def _base(comparison: Comparison, wanted: str | None) -> int | None:
    """Return the number of what differences are taken to; None where nothing is there."""
    everything = comparison.everything()
    if wanted is not None:
        return everything.index(comparison.find("base", wanted))
    untuned = [n for n, one in enumerate(everything) if one.runs[0].settings.get("peft") == "none"]
    if untuned:
        return untuned[0]
    kinds = [one.baseline for one in everything]
    return next((kinds.index(kind) for kind in BASES if kind in kinds), None)


def _recorded(one: Configuration) -> dict[str, float]:
    """Return costs, calibration and answers, as means over the seeds; what was not recorded is missing."""
    wanted = {} if one.baseline else COSTS | CALIBRATION
    means = {}
    for column, name in (wanted | ANSWERS).items():
        values = [run.metrics[name] for run in one.runs if name in run.metrics]
        if values:
            means[column] = float(np.mean(values))
    return means


def _findings(board: Leaderboard, order: list[int], comparison: Comparison) -> list[str]:
    """Return what the table shows, in sentences."""
    evidence, metric = board.evidence, board.metric
    rows, split = f"{len(comparison.targets):,}", comparison.split
    notes = []
    ranked = board.table[board.table["rank"].notna()]
    tied = ranked[ranked["rank"] == 1]["configuration"].tolist()
    if len(order) > 1:
        among = f"the {len(tied)}" if len(tied) == len(order) else f"the first {len(tied)} of {len(order)}"
        names = f": {listed(tied)}" if len(tied) < len(order) else ""
        verdict = f"On these {rows} {split} rows {among} configurations do not differ significantly in {metric}{names}."
        if len(tied) == 1:
            verdict = f"{tied[0]} is the best by {metric}."
        first, second = order[:2]
        gap = abs(evidence.value(first, metric) - evidence.value(second, metric))
        smallest = evidence.detectable(first, second, metric)
        notes.append(
            f"{verdict} Two such configurations must differ by {smallest:.4f} for a test at 5 % to find it in four of "
            f"five cases; the first two differ by {gap:.4f}."
            if smallest > 0
            else verdict
        )
        needed = evidence.rows_to_settle(first, second, metric)
        if gap == 0:
            notes.append("The first two have the same value: no number of rows would settle which is better.")
        elif gap < smallest:
            enough = "No number of rows settles the first two: it takes more seeds."
            notes.append(
                enough
                if math.isinf(needed)
                else f"It would take about {math.ceil(needed):,} rows to settle the first two."
            )
    if evidence.seed_freedom == 0 and len(order) > 1:
        notes.append(
            "Each configuration was trained with one seed: intervals and ranks include the noise of the rows, not "
            "that of the seeds. Add seed=1,2,3 to the sweep to see both."
        )
    return notes


def _cheapest(table: "pd.DataFrame") -> list[str]:
    """Return which of the configurations that share the first rank costs least, where they do not cost the same."""
    tied = [row for row in table.to_dict("records") if row["rank"] == 1]
    found: dict[str, list[str]] = {}
    for column, words in CHEAPEST.items():
        known = [row for row in tied if math.isfinite(row.get(column, math.nan))]
        if len({row[column] for row in known}) > 1:
            least = min(known, key=lambda row: row[column])
            found.setdefault(least["configuration"], []).append(words.format(least[column]))
    listed = "; ".join(f"{name} {', '.join(parts)}" for name, parts in found.items())
    return [f"Among those of the first rank: {listed}."] if listed else []


def ranked(board: Leaderboard) -> list[Configuration]:
    """Return the configurations by rank, the baselines left out."""
    by_name = {one.name: one for one in board.evidence.configurations if not one.baseline}
    names = board.table[board.table["rank"].notna()]["configuration"]
    return [by_name[name] for name in names]
