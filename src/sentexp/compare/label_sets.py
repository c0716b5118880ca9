"""Runs that give a text any number of labels: how well each label does, and the texts with most wrong ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.comparison import Comparison, Scored
from sentexp.compare.error_analysis import texts_of
from sentexp.config import TargetKind
from sentexp.errors import require
from sentexp.tracking.predictions import holds

if TYPE_CHECKING:
    import pandas as pd


def label_table(comparison: Comparison, names: Sequence[str]) -> "pd.DataFrame":
    """Return F1 of each label for configurations, as means over their seeds, the most frequent label first.

    The columns are `label`, `rows`, and `<name> F1`, missing where no row has the label.

    Args:
        comparison: of runs that predict sets of labels.
        names: of configurations and baselines.

    Raises:
        UserError: there is no such configuration, or the runs predict something else.
    """
    import pandas as pd

    _require_sets(comparison, "label_table")
    rows = comparison.targets.sum(0, dtype=np.int64)
    table: dict[str, Any] = {"label": comparison.labels, "rows": rows}
    for name in names:
        one = comparison.find("name", name)
        each = [_f1(comparison.targets > 0, _decided(run)) for run in one.runs]
        table[f"{one.name} F1"] = np.where(rows > 0, np.mean(each, axis=0), np.nan)
    return pd.DataFrame(table).sort_values("rows", ascending=False, kind="stable", ignore_index=True)


def errors_of_sets(comparison: Comparison, name: str, most: int = 50) -> "pd.DataFrame":
    """Return the rows with most wrong labels, of as many those that a configuration is surest of first.

    The columns are `text`, `label`, `predicted`, `wrong` (labels too many or too few), `id`, and the slices; of several
    seeds the first is shown.

    Args:
        comparison: of runs that predict sets of labels.
        name: of the configuration, or a run's id.
        most: how many rows.

    Raises:
        UserError: there is no such configuration, or the runs predict something else.
    """
    _require_sets(comparison, "errors_of_sets")
    run = comparison.find("name", name).runs[0]
    decided, true = _decided(run), comparison.targets > 0
    wrong = (decided != true).sum(1)
    off = np.where(true, 1 - run.probabilities, run.probabilities).max(1)
    numbers = np.lexsort((-off, -wrong))[:most]
    numbers = numbers[wrong[numbers] > 0]
    table = texts_of(comparison, numbers)
    said = [", ".join(np.array(comparison.labels, object)[row]) for row in decided[numbers]]
    table.insert(2, "predicted", said)
    table.insert(3, "wrong", wrong[numbers])
    return table


def _decided(run: Scored) -> NDArray[Any]:
    assert run.thresholds is not None
    return holds(run.probabilities, run.thresholds)


def _f1(true: NDArray[Any], decided: NDArray[Any]) -> NDArray[Any]:
    """Return F1 of each label, shape (labels,); 0 where nothing is right."""
    both = true.sum(0) + decided.sum(0)
    f1: NDArray[Any] = 2 * (true & decided).sum(0) / np.maximum(both, 1)
    return f1


def _require_sets(comparison: Comparison, name: str) -> None:
    require(
        comparison.kind is TargetKind.label_sets,
        f"{name} looks at sets of labels, and these runs predict {comparison.kind.value}.",
    )
