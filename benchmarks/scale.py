"""What is large: a thousand runs compared, a hundred thousand listed, a million rows prepared, trained and predicted.

    python benchmarks/scale.py                          # an hour on two cores, 5 GB of disk
    python benchmarks/scale.py --shares 0.01 0.1        # a hundredth and a tenth of all of it
    python benchmarks/scale.py --parts compare runs     # not the rows

Each command is a user's, in a process of its own, first at a tenth of the size and then at the whole. Where the size
is ten times larger, so may time and memory be; what a command takes to start counts in both. Runs to compare are those
of `compare.py`. A store of many runs is one recorded run, whose rows are copied within the store. Rows are those of
`data.py`; `train` does ten steps and evaluates on the rest. Adds each measurement to scale.json beside this, or
`--output`, when it is there: parts and sizes can be measured one by one, on one machine.
"""

import argparse
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import compare
import data
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RUNS, ROWS_OF_A_RUN, LISTED, ROWS = 1_000, 10_000, 100_000, 1_000_000
FEWEST = {"compare": 4, "runs": 4, "rows": 400}
"""Below these a command has nothing to work with."""
TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")
"""Of MLflow's SQLite store, those that hold a run."""
COPIED = {
    ("runs", "name"): "run.name || ' seed=' || copy.number",
    ("runs", "start_time"): "run.start_time + 1000 * copy.number",
    ("runs", "end_time"): "run.end_time + 1000 * copy.number",
    ("tags", "value"): "CASE run.key WHEN 'identity' THEN substr(copy.id, 1, 16) ELSE run.value END",
}
"""Columns of a copied run that are not those of the run, nor its id."""


def main() -> None:
    """Measure what is asked for, or make what a measurement needs in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 1.0], help="of the full sizes, ascending")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--output", type=Path, default=HERE / "scale.json")
    parser.add_argument("--make-runs", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make-copies", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make-rows", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make_runs is not None:
        compare.make(*given.make_runs)
    elif given.make_copies is not None:
        multiply(Path("mlflow.db"), given.make_copies)
    elif given.make_rows is not None:
        data.write_rows(Path("rows.csv"), given.make_rows)
    else:
        measure(given.shares, given.parts, given.output)


def measure(shares: list[float], parts: list[str], output: Path) -> None:
    """Measure each command at each size, add to the JSON, print a table of all that is there."""
    facts = {"machine": machine(), "commands": {}}
    if output.exists():
        facts = json.loads(output.read_text())
        if facts["machine"] != machine():
            raise SystemExit(f"{output} has figures of another machine: name another file with --output.")
    for part in parts:
        for share in shares:
            with tempfile.TemporaryDirectory() as folder:
                for command, size, used in PARTS[part](Path(folder), share, max(shares)):
                    facts["commands"].setdefault(command, {})[str(size)] = used | {"load_average": os.getloadavg()[0]}
                    output.write_text(json.dumps(facts, indent=2) + "\n")
                    print(f"{command}, {size:,}: {used['cpu_seconds']:.1f} s, {used['peak_gib']:.2f} GiB", flush=True)
    show(facts["commands"])


Measurements = Iterator[tuple[str, int, dict[str, float]]]
"""Commands, their sizes, and what they took."""


def compare_runs(folder: Path, share: float, largest: float) -> Measurements:
    """Compare the runs of a sweep, report included; where less than a tenth is measured at most, of fewer rows."""
    runs, rows = sized("compare", RUNS * share), max(100, round(ROWS_OF_A_RUN * min(1.0, largest * 10)))
    make(folder, "--make-runs", runs, rows)
    yield f"compare, {rows:,} rows each", runs, sentexp(folder, "compare")


def list_runs(folder: Path, share: float, _: float) -> Measurements:
    """List the runs of a store, and find one of them."""
    runs = sized("runs", LISTED * share)
    make(folder, "--make-runs", 1, 100)
    make(folder, "--make-copies", runs)
    yield "runs", runs, sentexp(folder, "runs")
    yield "compare, one of them", runs, sentexp(folder, "compare", f"runs=[{copy_id(runs // 2)[:12]}]")


def multiply(file: Path, runs: int) -> None:
    """Copy the only run of a store that is no sweep and no baseline until there are so many."""
    with closing(sqlite3.connect(file)) as store:
        ((run_id,),) = store.execute("SELECT run_uuid FROM tags WHERE key = 'identity'")
        indices = store.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL").fetchall()
        for name, _ in indices:
            store.execute(f"DROP INDEX {name}")
        for setting in ("synchronous = OFF", "journal_mode = OFF", "cache_size = -500000"):
            store.execute(f"PRAGMA {setting}")
        store.execute("CREATE TEMP TABLE copies (id TEXT, number INTEGER)")
        store.executemany("INSERT INTO copies VALUES (?, ?)", sorted((copy_id(n), n) for n in range(1, runs)))
        for table in TABLES:
            columns = [column for _, column, *_ in store.execute(f"PRAGMA table_info({table})")]  # in their order
            values = ", ".join(copied(table, column) for column in columns)
            made = f"SELECT {values} FROM {table} run, copies copy WHERE run.run_uuid = ?"
            store.execute(f"INSERT INTO {table} {made}", (run_id,))
        for _, index in indices:
            store.execute(index)
        store.commit()


def copy_id(number: int) -> str:
    """Return the MLflow id of a copy."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def copied(table: str, column: str) -> str:
    """Return the value of a column in a copy, in SQL."""
    return "copy.id" if column == "run_uuid" else COPIED.get((table, column), f'run."{column}"')


def use_rows(folder: Path, share: float, _: float) -> Measurements:
    """Prepare, audit, train on and predict the rows of a CSV."""
    rows = sized("rows", ROWS * share)
    make(folder, "--make-rows", rows)
    words = ["data=csv", "data.path=rows.csv", "data.max_length=128", "model=tiny", "trainer.progress_bar=false"]
    yield "prepare", rows, sentexp(folder, "prepare", *words)
    yield "audit", rows, sentexp(folder, "audit", *words)
    yield "train, ten steps", rows, sentexp(folder, *words, "trainer.max_steps=10", "baseline=false")
    yield "predict", rows, sentexp(folder, "predict", "input=rows.csv", "output=said.csv")


def make(folder: Path, what: str, *sizes: int) -> None:
    """Write runs or rows into a folder in another process, as what this one holds would count as the commands' own."""
    compare.measure([sys.executable, str(Path(__file__).resolve()), what, *map(str, sizes)], folder)


def sized(part: str, size: float) -> int:
    """Return a size as a whole number, not below what the part needs."""
    return max(FEWEST[part], round(size))


def sentexp(folder: Path, *words: str) -> dict[str, float]:
    """Return time and memory of a command in a folder, which has a cache of its own but for converted models."""
    from sentexp.system.package_files import cache_dir

    cache, models = folder / "cache", cache_dir() / "models"
    if not cache.exists():
        cache.mkdir()
        models.mkdir(parents=True, exist_ok=True)
        (cache / "models").symlink_to(models)
    return compare.measure(["env", f"SENTEXP_CACHE={cache}", sys.executable, "-m", "sentexp", *words], folder)[0]


PARTS = {"compare": compare_runs, "runs": list_runs, "rows": use_rows}


def show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print what was measured, and how it grew."""
    table = Table("", "size", "seconds", "CPU seconds", "peak GiB", "size x", "CPU x", "GiB x")
    for command, by_size in found.items():
        first = before = None
        for size, used in sorted(by_size.items(), key=lambda one: int(one[0])):
            keys = ("wall_seconds", "cpu_seconds", "peak_gib")
            cells = [f"{int(size):,}", *(f"{used[key]:.{2 if key == 'peak_gib' else 1}f}" for key in keys)]
            if before is not None and first is not None:
                grown = (used[key] / before[key] for key in ("cpu_seconds", "peak_gib"))
                cells += [f"{int(size) / int(first):.1f}", *(f"{times:.1f}" for times in grown)]
            table.add_row("" if before else command, *cells)
            first, before = size, used
    Console(width=110).print(table)


def machine() -> dict[str, Any]:
    """Return which machine it is."""
    from sentexp.system.device import choose_device, describe

    return describe(choose_device("auto"))


if __name__ == "__main__":
    main()
