"""One setting chosen on validation before anything is compared: each method with the learning rate that suits it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from sentexp.compare.comparison import Comparison, Configuration
from sentexp.compare.settings import by_value, differing
from sentexp.config.metric_names import is_better_higher
from sentexp.errors import listed, require

FEWEST = 3
"""Values of which the best is noteworthy where it is the smallest or the largest."""


def with_chosen(comparison: Comparison, key: str, metric: str) -> Comparison:
    """Return a comparison that keeps, of configurations that differ in one setting alone, the best on validation.

    That is the best mean over the seeds of the metric at the best checkpoint; of equal ones it is the smallest value. A
    value with fewer seeds than another is not chosen: some of its runs have failed.

    Args:
        comparison: on the test rows.
        key: of the setting, such as `optim.lr`.
        metric: that chooses.

    Raises:
        UserError: nothing differs in the setting, or a run has no such metric.
    """
    configurations = comparison.configurations
    changed = differing([one.runs[0].settings for one in configurations])
    require(
        key in changed,
        f"choose={key} is not a setting in which these configurations differ: it must be one of "
        f"{', '.join(changed) or 'none, as they are one'}.",
    )
    groups: dict[str, list[Configuration]] = {}
    for one in configurations:
        others = {name: value for name, value in one.runs[0].settings.items() if name != key}
        groups.setdefault(json.dumps(others, sort_keys=True), []).append(one)
    best = [_best(group, key, metric) for group in groups.values()]
    kept = [one for one in configurations if one in best]
    notes = [
        f"Of configurations that differ in {key} alone, the one with the best {metric} on the validation rows is kept: "
        f"{len(kept)} of {len(configurations)}."
    ]
    pairs = zip(best, groups.values(), strict=True)
    ends = [one.name for one, group in pairs if _is_at_an_end(one, group, key) and _is_alone(one, group, metric)]
    if ends:
        notes.append(f"The smallest or the largest {key} was the best for {listed(ends)}: one beyond may be better.")
    return replace(comparison, configurations=kept, notes=[*comparison.notes, *notes])


def _best(group: Sequence[Configuration], key: str, metric: str) -> Configuration:
    most = max(len(one.runs) for one in group)
    complete = sorted((one for one in group if len(one.runs) == most), key=lambda one: by_value(_value(one, key)))
    sign = 1 if is_better_higher(metric) else -1
    return max(complete, key=lambda one: sign * _on_validation(one, metric))


def _on_validation(one: Configuration, metric: str) -> float:
    """Return the mean over the seeds; what is not a number loses."""
    values = [run.metrics.get(f"best/{metric}") for run in one.runs]
    known = [value for value in values if value is not None]
    require(
        len(known) == len(values),
        f"choose=... needs {metric} on validation, and {one.name} has none: use another metric, or leave choose out.",
    )
    mean = fmean(known)
    return mean if math.isfinite(mean) else -math.inf if is_better_higher(metric) else math.inf


def _is_alone(one: Configuration, group: Sequence[Configuration], metric: str) -> bool:
    """Tell whether no other value is as good on validation."""
    return all(_on_validation(other, metric) != _on_validation(one, metric) for other in group if other is not one)


def _is_at_an_end(one: Configuration, group: Sequence[Configuration], key: str) -> bool:
    """Tell whether a value is the smallest or the largest of three numbers or more."""
    order = sorted(by_value(_value(other, key)) for other in group)
    are_numbers = all(kind == 0 for kind, *_ in order)
    return are_numbers and len(order) >= FEWEST and by_value(_value(one, key)) in (order[0], order[-1])


def _value(one: Configuration, key: str) -> str | None:
    value = one.runs[0].settings.get(key)
    return None if value is None else str(value)
