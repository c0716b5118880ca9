"""`python -m sentexp runs`: every run of the experiment, by identity: its state and its result."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from sentexp.config import Config, TargetKind, TrackingBackend
from sentexp.config.target_kind import kind_of_run
from sentexp.system.console import OUT, say, waiting
from sentexp.system.json_files import read_json
from sentexp.tracking.queries import PRUNED, is_run
from sentexp.tracking.run_dir import RESULT, STATE, is_locked
from sentexp.tracking.store import describe_store, find_store

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

SPLITS = {"validation": "best", "test": "test"}
"""Columns, and where the metrics of a run are that they show."""


def runs(config: Config) -> None:
    """Print the runs that MLflow holds of `tracking.experiment`, the oldest first.

    With `tracking=none` they are those in `output_dir`.

    Raises:
        UserError: the store cannot be used.
    """
    folder = Path(config.output_dir)
    if config.tracking.backend is TrackingBackend.none:
        rows, where = list(_in_folder(folder)), str(folder)
    else:
        with waiting("Reading the runs"):
            store = find_store(config.tracking)
            recorded = [] if store is None else [run for run in store.search() if is_run(run)]
        rows = [_recorded(run, folder) for run in reversed(recorded)]
        where = f"experiment {config.tracking.experiment} of {describe_store(config.tracking)}"
    if not rows:
        say(f"No runs in {where}.")
        return
    fixed = [Column(name, no_wrap=True) for name in ("state", *SPLITS, "seconds")]
    title = f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} in {where}, accuracies"
    table = Table(Column("identity", no_wrap=True), "run", *fixed, title=title)
    table.title_justify = "left"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    OUT.print(table)


def _recorded(run: "Run", folder: Path) -> list[str]:
    identity = run.data.tags.get("identity", "")
    state = run.info.status.lower()
    if run.data.tags.get(PRUNED):
        state = "pruned"
    elif state == "running" and not is_locked(folder / identity):
        state = "interrupted"
    return [identity, run.info.run_name, state, *_numbers(run.data.metrics)]


def _in_folder(folder: Path) -> "list[list[str]]":
    rows = []
    for path in sorted(folder.glob("*")):
        result, state = path / RESULT, path / STATE
        if state.is_file():
            state_name = "running" if is_locked(path) else "interrupted"
            rows.append([path.name, "", state_name, *_numbers({})])
        elif result.is_file():
            metrics = read_json(result).get("metrics")
            if metrics is not None:  # else it is a baseline
                rows.append([path.name, "", "finished", *_numbers(metrics)])
    return rows


def _numbers(metrics: dict[str, Any]) -> list[str]:
    kind = kind_of_run(metrics)
    first, mark = kind.headline, "" if kind is TargetKind.classes else f"{kind.headline} "
    values = [metrics.get(f"{split}/{first}", math.nan) for split in SPLITS.values()]
    seconds = metrics.get("seconds")
    return [
        *("" if math.isnan(value) else f"{mark}{value:.4f}" for value in values),
        "" if seconds is None else f"{seconds:.0f}",
    ]
