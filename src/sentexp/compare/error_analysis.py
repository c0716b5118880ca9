"""Single rows: where one run is right and another wrong, the most confident errors, likely errors of the labels."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare import significance
from sentexp.compare.comparison import Comparison, Configuration
from sentexp.compare.confident_learning import doubted_rows
from sentexp.compare.leaderboard import metrics_of
from sentexp.compare.metric_sums import AREA, measured
from sentexp.config import TargetKind, check_measure
from sentexp.data.text_parts import shown
from sentexp.errors import require
from sentexp.tracking.predictions import SLICE, read_rows

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("text", "label", "id", "right", "predicted", "p", "error", "suggested", "wrong")
"""Columns of these tables and of those of sets of labels: a slice of such a name is `slice.<name>`."""


def head_to_head(
    comparison: Comparison, a: str, b: str, metric: str = "accuracy", permutations: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return how two configurations agree, and whether they differ: counts of rows, and p-values of two exact tests.

    Args:
        comparison: see `sentexp.compare.load`.
        a: name or run id; with several seeds the mean of their probabilities counts.
        b: the other.
        metric: of the permutation test, any but the area under the ROC curve.
        permutations: random ones.
        seed: of the permutations.

    Raises:
        UserError: there is no such configuration or metric.
    """
    check_measure(metric)
    _require_classes(comparison, "head_to_head")
    metrics_of(comparison, metric)
    first, second = comparison.find("a", a), comparison.find("b", b)
    both = [_mean_probabilities(one) for one in (first, second)]
    right = np.stack([each.argmax(1) == comparison.targets for each in both])
    runs = [measured(comparison.targets, each, [metric]) for each in both]
    values = [run.whole()[metric] for run in runs]
    counts = {
        "a": first.name,
        "b": second.name,
        "both_right": int((right[0] & right[1]).sum()),
        "only_a_right": int((right[0] & ~right[1]).sum()),
        "only_b_right": int((~right[0] & right[1]).sum()),
        "both_wrong": int((~right[0] & ~right[1]).sum()),
        "metric": metric,
        "difference": values[0] - values[1],
        "mcnemar_p": float(significance.mcnemar(right)[0, 1]),
    }
    if metric != AREA:
        counts["permutation_p"] = significance.permutation(runs[0], runs[1], metric, permutations, seed)
    return counts


def disagreements(comparison: Comparison, a: str, b: str) -> "pd.DataFrame":
    """Return the rows that one configuration gets right and the other wrong, the clearest first, with their texts.

    The columns are `right` (which of the two is), `text`, `label`, `<name> says`, `<name> p` (probability of the true
    label) for both, `id`, and the slices.

    Args:
        comparison: see `sentexp.compare.load`.
        a: name or run id.
        b: the other.

    Raises:
        UserError: there is no such configuration.
    """
    _require_classes(comparison, "disagreements")
    first, second = comparison.find("a", a), comparison.find("b", b)
    require(first is not second, f"a={a} and b={b} are the same configuration: name two.")
    both = [_mean_probabilities(one) for one in (first, second)]
    right = [each.argmax(1) == comparison.targets for each in both]
    numbers = np.flatnonzero(right[0] != right[1])
    sure = [_of_truth(comparison, each)[numbers] for each in both]
    order = np.argsort(-np.abs(sure[0] - sure[1]), kind="stable")
    numbers = numbers[order]
    table = texts_of(comparison, numbers)
    for place, (one, each, p) in enumerate(zip((first, second), both, sure, strict=True)):
        table.insert(2 + 2 * place, f"{one.name} says", _labels(comparison, each.argmax(1)[numbers]))
        table.insert(3 + 2 * place, f"{one.name} p", p[order])
    table.insert(0, "right", np.where(right[0][numbers], first.name, second.name))
    return table


def confident_errors(comparison: Comparison, name: str, most: int = 50) -> "pd.DataFrame":
    """Return the rows that a configuration gets wrong and is surest of, the surest first.

    The columns are `text`, `label`, `predicted`, `p` (probability of what it predicted), `id`, and the slices.

    Args:
        comparison: see `sentexp.compare.load`.
        name: of the configuration, or a run's id.
        most: how many rows.

    Raises:
        UserError: there is no such configuration.
    """
    _require_classes(comparison, "confident_errors")
    probabilities = _mean_probabilities(comparison.find("name", name))
    wrong = np.flatnonzero(probabilities.argmax(1) != comparison.targets)
    numbers = wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:most]
    table = texts_of(comparison, numbers)
    table.insert(2, "predicted", _labels(comparison, probabilities.argmax(1)[numbers]))
    table.insert(3, "p", probabilities.max(1)[numbers])
    return table


def largest_errors(comparison: Comparison, name: str, most: int = 50) -> "pd.DataFrame":
    """Return the rows whose score a configuration misses by most, the worst first.

    The columns are `text`, `label` (the true score), `predicted`, `error`, `id`, and the slices.

    Args:
        comparison: of runs that predict scores.
        name: of the configuration, or a run's id.
        most: how many rows.

    Raises:
        UserError: there is no such configuration.
    """
    predicted = _mean_probabilities(comparison.find("name", name))[:, 0]
    errors = predicted - comparison.targets
    numbers = np.argsort(-np.abs(errors), kind="stable")[:most]
    table = texts_of(comparison, numbers)
    table.insert(2, "predicted", predicted[numbers])
    table.insert(3, "error", errors[numbers])
    return table


def _require_classes(comparison: Comparison, name: str) -> None:
    instead = {TargetKind.scores: "largest_errors", TargetKind.label_sets: "errors_of_sets"}.get(comparison.kind)
    require(instead is None, f"{name} counts classes, and these runs predict {comparison.kind.value}: use {instead}.")


def label_errors(comparison: Comparison, most: int = 50) -> "pd.DataFrame":
    """Return the rows whose label is probably wrong, the likeliest first: confident learning (Northcutt et al. 2021).

    It looks at the mean probabilities of all configurations. None of these rows was trained on, as confident learning
    asks. A row that is found is to be looked at, not to be taken out.

    The columns are `text`, `label`, `suggested`, `p` (of the suggested label), `id`, and the slices.

    Args:
        comparison: see `sentexp.compare.load`.
        most: how many rows.
    """
    _require_classes(comparison, "label_errors")
    probabilities = np.mean([_mean_probabilities(one) for one in comparison.configurations], axis=0)
    numbers = doubted_rows(comparison.targets, probabilities)[:most]
    table = texts_of(comparison, numbers)
    table.insert(2, "suggested", _labels(comparison, probabilities.argmax(1)[numbers]))
    table.insert(3, "p", probabilities.max(1)[numbers])
    return table


def _mean_probabilities(one: Configuration) -> NDArray[Any]:
    """Return what a configuration says, as the mean over its seeds, shape (rows, classes)."""
    mean: NDArray[Any] = np.mean([run.probabilities for run in one.runs], axis=0)
    return mean


def _of_truth(comparison: Comparison, said: NDArray[Any]) -> NDArray[Any]:
    probabilities: NDArray[Any] = said[np.arange(len(said)), comparison.targets]
    return probabilities


def _labels(comparison: Comparison, numbers: NDArray[Any]) -> list[str]:
    return [comparison.labels[number] for number in numbers]


def _true(comparison: Comparison, targets: NDArray[Any]) -> list[Any]:
    match comparison.kind:
        case TargetKind.scores:
            return list(targets)
        case TargetKind.label_sets:
            return [", ".join(_labels(comparison, np.flatnonzero(row))) for row in targets]
    return _labels(comparison, targets)


def texts_of(comparison: Comparison, numbers: NDArray[Any]) -> "pd.DataFrame":
    """Return text, true label, id and slices of some rows."""
    import pandas as pd

    file = comparison.configurations[0].runs[0].file  # the run whose order of rows is the comparison's
    read = read_rows(file, numbers.tolist())
    table = {
        "text": [shown(text) for text in read.column("text").to_pylist()],
        "label": _true(comparison, comparison.targets[numbers]),
    }
    table["id"] = comparison.ids[numbers].tolist()
    for column, (codes, values) in comparison.slices.items():
        name = f"{SLICE}{column}" if column in COLUMNS else column
        table[name] = [values[code] for code in codes[numbers]]
    return pd.DataFrame(table)
