"""Runs in a store: which MLflow runs are runs of sentexp's, and which belong to a sweep."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sentexp.tracking.store import PARENT, Store, read_artifact

if TYPE_CHECKING:
    from mlflow.entities import Run

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
    return filter(is_run, store.walk("attributes.status = 'FINISHED'", "attributes.end_time DESC", page=FEW))


def runs_named(store: Store, name: str) -> "list[Run]":
    """Return the MLflow runs of this name, the latest first; the store looks for them, and reads no others."""
    return [run for run in store.search(f"attributes.run_name LIKE '{_pattern(name)}'") if run.info.run_name == name]


def runs_beginning(store: Store, beginning: str) -> "list[Run]":
    """Return the MLflow runs whose id or identity begins so, the latest first; the store reads no others."""
    queries = (f"{key} LIKE '{_pattern(beginning)}%'" for key in ("attributes.run_id", "tags.identity"))
    found = {run.info.run_id: run for query in queries for run in store.search(query)}
    runs = (run for run in found.values() if run.info.run_id.startswith(beginning) or _identity_begins(run, beginning))
    return sorted(runs, key=lambda run: -run.info.start_time)


def _identity_begins(run: "Run", beginning: str) -> bool:
    return bool(run.data.tags.get("identity", "").startswith(beginning))


def _pattern(text: str) -> str:
    """Return a pattern of SQL for a text, any letter in place of those that would end the text or the filter."""
    return re.sub(r"[^\w .=,:+-]|_", "_", text)


def find_sweeps(store: Store, most: int | None = None) -> "list[Run]":
    """Return the MLflow runs of the sweeps themselves, the latest first, not more than `most`."""
    return store.search("tags.`sweep.identity` != ''", most)


def runs_of_sweep(store: Store, parent: "Run") -> "list[Run]":
    """Return the runs of a sweep in the order of their starts, after them those that an earlier sweep has finished."""
    children = store.search(f"tags.`{PARENT}` = '{parent.info.run_id}'")
    runs = {run.info.run_id: run for run in reversed(children)}
    listed = read_artifact(store, parent.info.run_id, "runs.json")
    run_ids = [outcome["run_id"] for outcome in ([] if listed is None else json.loads(listed))]
    return [*runs.values(), *store.of_ids([one for one in run_ids if one is not None and one not in runs])]
