"""`python -m sentexp runs`: every run of the experiment, by identity: its state and its result."""

import math
from collections.abc import Iterator
from itertools import islice
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
from sentexp.tracking.sqlite_reader import Wanted
from sentexp.tracking.store import describe_store, find_store

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

SPLITS = {"validation": "best", "test": "test"}
"""Columns, and where the metrics of a run are that they show."""

BLOCK = 1000
"""Runs that are in memory at one time, and in one table."""


def runs(config: Config) -> None:
    """Print the runs that MLflow holds of `tracking.experiment`, the oldest first, a table for each `BLOCK` of them.

    With `tracking=none` they are those in `output_dir`.

    Raises:
        UserError: the store cannot be used.
    """
    folder = Path(config.output_dir)
    if config.tracking.backend is TrackingBackend.none:
        rows, where = _in_folder(folder), str(folder)
    else:
        with waiting("Reading the runs"):
            store = find_store(config.tracking)
        recorded = iter(()) if store is None else store.walk(Wanted(oldest_first=True))
        rows = (_recorded(run, folder) for run in recorded if is_run(run))
        where = f"experiment {config.tracking.experiment} of {describe_store(config.tracking)}"
    count = 0
    while block := _next(rows):
        first, count = count + 1, count + len(block)
        if first == 1 and count < BLOCK:
            OUT.print(_table(block, f"{count} {'run' if count == 1 else 'runs'} in {where}, accuracies"))
        else:
            OUT.print(_table(block, f"runs {first:,} to {count:,} in {where}, accuracies"))
    if count == 0:
        say(f"No runs in {where}.")


def _next(rows: Iterator[list[str]]) -> list[list[str]]:
    """Return the next rows of a table, fewer where these are the last."""
    with waiting("Reading the runs"):
        return list(islice(rows, BLOCK))


def _table(rows: list[list[str]], title: str) -> Table:
    fixed = [Column(name, no_wrap=True) for name in ("state", *SPLITS, "seconds")]
    table = Table(Column("identity", no_wrap=True), "run", *fixed, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _recorded(run: "Run", folder: Path) -> list[str]:
    identity = run.data.tags.get("identity", "")
    state = run.info.status.lower()
    if run.data.tags.get(PRUNED):
        state = "pruned"
    elif state == "running" and not is_locked(folder / identity):
        state = "interrupted"
    return [identity, run.info.run_name, state, *_numbers(run.data.metrics)]


def _in_folder(folder: Path) -> Iterator[list[str]]:
    for path in sorted(folder.glob("*")):
        result, state = path / RESULT, path / STATE
        if state.is_file():
            state_name = "running" if is_locked(path) else "interrupted"
            yield [path.name, "", state_name, *_numbers({})]
        elif result.is_file():
            metrics = read_json(result).get("metrics")
            if metrics is not None:  # else it is a baseline
                yield [path.name, "", "finished", *_numbers(metrics)]


def _numbers(metrics: dict[str, Any]) -> list[str]:
    kind = kind_of_run(metrics)
    first, mark = kind.headline, "" if kind is TargetKind.classes else f"{kind.headline} "
    values = [metrics.get(f"{split}/{first}", math.nan) for split in SPLITS.values()]
    seconds = metrics.get("seconds")
    return [
        *("" if math.isnan(value) else f"{mark}{value:.4f}" for value in values),
        "" if seconds is None else f"{seconds:.0f}",
    ]
