"""Runs in a store: which MLflow runs are runs of sentexp's, and which belong to a sweep."""

import json
from collections.abc import Iterator

from sentexp.tracking.sqlite_reader import Run, Wanted
from sentexp.tracking.store import PARENT, Store, read_artifact

EVALUATION = "evaluation"
"""The tag of a finished run's evaluation on other data: the name of these data."""
NOT_RUNS = ("sweep.identity", "baseline", EVALUATION)
"""Tags of MLflow runs that are no runs of sentexp's."""
PRUNED = "pruned"
"""The tag of a run that a search has stopped: why."""
FEW = 50
"""Runs that are read at one time where the first of them are wanted."""


def is_run(run: "Run") -> bool:
    """Tell whether an MLflow run was trained: it is not a sweep, baseline or evaluation."""
    return not set(NOT_RUNS) & set(run.data.tags)


def finished_runs(store: Store) -> "Iterator[Run]":
    """Yield the runs that are finished, the one that ended last first."""
    return filter(is_run, store.walk(Wanted(status="FINISHED", by_end=True), page=FEW))


def find_sweeps(store: Store) -> "list[Run]":
    """Return the MLflow runs of the sweeps themselves, the latest first."""
    return store.search(Wanted(tag="sweep.identity"))


def runs_of_sweep(store: Store, parent: "Run") -> "list[Run]":
    """Return the runs of a sweep in the order of their starts, after them those that an earlier sweep has finished."""
    children = store.search(Wanted(tag=PARENT, value=parent.info.run_id))
    runs = {run.info.run_id: run for run in reversed(children)}
    listed = read_artifact(store, parent.info.run_id, "runs.json")
    for outcome in [] if listed is None else json.loads(listed):
        run_id = outcome["run_id"]
        run = None if run_id is None or run_id in runs else store.get_run(run_id)
        if run is not None:
            runs[run_id] = run
    return list(runs.values())
