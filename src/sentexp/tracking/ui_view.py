"""What MLflow's UI shows first of an experiment: the runs by what tells them from each other, the best one on top.

MLflow has no setting for the columns of its table. It has views that are shared: an experiment's tag holds one, and an
address that names the tag opens it, in any browser. The one that is written here is never more than a proposal: whoever
chooses columns in the UI keeps these.
"""

import json
import time

from sentexp.config.metric_names import is_better_higher
from sentexp.errors import UserError
from sentexp.tracking.queries import find_sweeps, runs_of_sweep
from sentexp.tracking.store import Store

KEY = "sentexp"
TAG = f"mlflow.sharedViewState.{KEY}"
NAME = "Best runs first"
METRICS = ("test/accuracy", "test/auroc_macro", "test/f1_macro", "seconds")
WIDTH = 88
"""Pixels of a column."""
MOST_KEYS = 4
"""Swept keys that have a column: more do not fit beside the metrics."""
USUAL_MONITOR = "accuracy"


def experiment_view(store: Store) -> str:
    """Write the view of an experiment, and return the part of an address that opens it.

    Raises:
        UserError: the store cannot be used.
    """
    page = f"/#/experiments/{store.experiment}/runs?workflowType=machine_learning"
    try:
        store.client.set_experiment_tag(store.experiment, TAG, _named(view_of(store)))
    except UserError:  # a store that may only be read has its own view
        return page
    return f"{page}&viewStateShareKey={KEY}"


def view_of(store: Store) -> dict[str, object]:
    """Return the state of the table of runs as MLflow's UI keeps it: columns, and the order of the rows.

    An order by a metric shows the runs of a sweep beside each other and not below it, where they would be folded.
    """
    keys, monitor = _latest_sweep(store)
    metrics = dict.fromkeys((f"best/{monitor}", *METRICS))
    columns = [*(_column("params", key) for key in keys), *(_column("metrics", name) for name in metrics)]
    return {
        "searchFilter": "",
        "orderByKey": _column("metrics", f"best/{monitor}"),
        "orderByAsc": not is_better_higher(monitor),
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, WIDTH),
    }


def _named(view: dict[str, object]) -> str:
    """Return the tag of a view: since 3.15 MLflow lists it by its name; before, it reads the keys of the state."""
    now = int(time.time() * 1000)
    return json.dumps({"name": NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(view), **view})


def _latest_sweep(store: Store) -> tuple[list[str], str]:
    """Return the parameters that differ between the runs of the latest sweep, and the metric that selects."""
    sweeps = find_sweeps(store, most=1)
    if not sweeps:
        return [], USUAL_MONITOR
    runs = runs_of_sweep(store, sweeps[0])
    keys = []
    for key in sweeps[0].data.params:
        for name in (key, f"{key}.name"):
            if len({run.data.params.get(name) for run in runs}) > 1:
                keys.append(name)
                break
    monitors = {run.data.params.get("trainer.monitor", "").removeprefix("validation/") for run in runs}
    return keys[:MOST_KEYS], monitors.pop() if len(monitors) == 1 else USUAL_MONITOR


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
