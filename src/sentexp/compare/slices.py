"""The same metrics for each slice of the rows: a language, an agreement level, a length, a column of the user."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.compare.comparison import FEWEST_ROWS, Comparison, Configuration
from sentexp.compare.statistics import measure_configurations
from sentexp.config import check_measure
from sentexp.config.metric_names import is_better_higher
from sentexp.errors import require

if TYPE_CHECKING:
    import pandas as pd


def slice_table(
    comparison: Comparison,
    metric: str = "accuracy",
    by: str | None = None,
    configurations: Sequence[Configuration] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return a metric for each slice and configuration, the slices of each column from large to small.

    The columns are `slice` (the column), `value`, `rows`, `configuration`, the metric with `<metric>_low` and
    `<metric>_high` (missing below 30 rows), and `lost`: by how much the slice is worse than all rows, times its rows.
    For accuracy that is how many rows more are wrong than if the slice were like the rest.

    Args:
        comparison: see `sentexp.compare.load`.
        metric: any of the metrics of a split.
        by: a slice column; None is all of them.
        configurations: of the comparison; None is all of them.
        confidence: of the intervals.
        resamples: of the bootstrap, within each slice.
        seed: of the resamples.

    Raises:
        UserError: there is no such column or metric.
    """
    import pandas as pd

    check_measure(metric, confidence, resamples)
    require(
        by is None or by in comparison.slices,
        f"by={by} is not a slice of these rows: it must be one of {', '.join(comparison.slices)}; data.slices=[...] of "
        "a run keeps more columns.",
    )
    chosen = list(comparison.configurations if configurations is None else configurations)
    overall = measure_configurations(comparison, chosen, 1, seed, confidence, metrics=[metric])
    sign = 1 if is_better_higher(metric) else -1
    rows_of_table: list[dict[str, Any]] = []
    for column in comparison.slices if by is None else [by]:
        codes, values = comparison.slices[column]
        counts = np.bincount(codes, minlength=len(values))
        for code in np.argsort(-counts, kind="stable"):
            rows = int(counts[code])
            if rows == 0:
                continue
            enough = rows >= FEWEST_ROWS
            here = codes == code
            evidence = measure_configurations(
                comparison, chosen, resamples if enough else 1, seed, confidence, here, [metric]
            )
            for number, configuration in enumerate(chosen):
                value = evidence.value(number, metric)
                low, high = evidence.interval(number, metric)[1:] if enough else (np.nan, np.nan)
                row = {"slice": column, "value": values[code], "rows": rows, "configuration": configuration.name}
                row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
                rows_of_table.append(row | {"lost": sign * (overall.value(number, metric) - value) * rows})
    return pd.DataFrame(rows_of_table)


def worst_slices(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return for each configuration the slice where it loses most; none where it loses nowhere.

    Args:
        table: of `slice_table`.
    """
    losing = table[table["lost"] > 0]
    worst = losing.loc[losing.groupby("configuration", sort=False)["lost"].idxmax()] if len(losing) else losing
    return worst.reset_index(drop=True)
