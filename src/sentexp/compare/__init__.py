"""Comparing runs with their noise, from Python as from the command line; tables are pandas'.

from sentexp.compare import load_runs, leaderboard, slice_table, disagreements
runs = load_runs(sweep="sweep r=4,8,16")        # or runs=[...], experiment_name=..., filter=...; the latest sweep
leaderboard(runs, metric="f1_macro").table
disagreements(runs, "r=4", "r=8")
"""

from typing import Any

from sentexp.compare.comparison import Comparison, load
from sentexp.compare.error_analysis import (
    confident_errors,
    disagreements,
    head_to_head,
    label_errors,
    largest_errors,
)
from sentexp.compare.label_sets import errors_of_sets, label_table
from sentexp.compare.leaderboard import Leaderboard, leaderboard
from sentexp.compare.slices import slice_table, worst_slices
from sentexp.config import CompareConfig, EvaluatedSplit, TrackingBackend, TrackingConfig, from_conf
from sentexp.errors import require

__all__ = [
    "Comparison",
    "Leaderboard",
    "confident_errors",
    "disagreements",
    "errors_of_sets",
    "head_to_head",
    "label_errors",
    "label_table",
    "largest_errors",
    "leaderboard",
    "load_runs",
    "slice_table",
    "worst_slices",
]


def load_runs(uri: str | None = None, within: str = "sentexp", split: str = "test", **what: Any) -> Comparison:
    """Return runs beside each other on the same rows: those of the latest sweep, unless something is named.

    Args:
        uri: of the MLflow store; None is `MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db`.
        within: the MLflow experiment that holds the sweep or the runs.
        split: `test` or `validation`.
        what: one of `sweep` (id or name), `runs` (a list of ids), `experiment_name`, `filter` (MLflow's).

    Raises:
        UserError: there is nothing to compare, runs were tested on different rows, or these rows tell nothing.
    """
    splits = [one.name for one in EvaluatedSplit]
    require(split in splits, f"split={split} must be one of {', '.join(splits)}.")
    if isinstance(what.get("runs"), str):
        what["runs"] = [what["runs"]]
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=uri, experiment=within)
    return load(from_conf(CompareConfig, tracking=tracking, split=EvaluatedSplit[split], **what))
