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


def runs_named(store: Store, name: str) -> list[Run]:
    """Return the MLflow runs of this name, the latest first; the store looks for them, and reads no others."""
    return [run for run in store.search(Wanted(name=name)) if run.info.run_name == name]


def runs_beginning(store: Store, beginning: str) -> list[Run]:
    """Return the MLflow runs whose id or identity begins so, the latest first; the store reads no others."""
    wanted = Wanted(id_begins=beginning), Wanted(tag="identity", value_begins=beginning)
    found = {run.info.run_id: run for one in wanted for run in store.search(one)}
    runs = (run for run in found.values() if run.info.run_id.startswith(beginning) or _identity_begins(run, beginning))
    return sorted(runs, key=lambda run: -run.info.start_time)


def _identity_begins(run: Run, beginning: str) -> bool:
    return run.data.tags.get("identity", "").startswith(beginning)


def find_sweeps(store: Store, most: int | None = None) -> list[Run]:
    """Return the MLflow runs of the sweeps themselves, the latest first, not more than `most`."""
    return store.search(Wanted(tag="sweep.identity"), most)


def runs_of_sweep(store: Store, parent: "Run") -> "list[Run]":
    """Return the runs of a sweep in the order of their starts, after them those that an earlier sweep has finished."""
    children = store.search(Wanted(tag=PARENT, value=parent.info.run_id))
    runs = {run.info.run_id: run for run in reversed(children)}
    listed = read_artifact(store, parent.info.run_id, "runs.json")
    run_ids = [outcome["run_id"] for outcome in ([] if listed is None else json.loads(listed))]
    return [*runs.values(), *store.of_ids([one for one in run_ids if one is not None and one not in runs])]
