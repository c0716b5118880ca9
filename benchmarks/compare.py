"""Comparing the runs of a large sweep: the whole command, and where its time goes.

    python benchmarks/compare.py                   # 100 runs of 10,000 test rows, three repetitions, minutes

The runs are made by simulation: two classes, errors that all runs share in part, three slice columns, two baselines;
they are recorded as sentexp records its own. Each repetition is `python -m sentexp compare` in a process of its own,
then the same by stages in another. CPU seconds are user and system together; on a busy machine they are less than
wall seconds, and with a second core more. Writes compare.json beside this.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

    from sentexp.tracking.run_logger import RunLogger

HERE = Path(__file__).parent
LABELS = ["negative", "positive"]
RANKS = (2, 4, 8, 16, 32)
RATES = tuple(step * 1e-4 for step in range(1, 21))
WORDS = ("a", "the", "film", "story", "plot", "cast", "ending", "is", "never", "always", "good", "bad", "dull", "warm")
BASELINES = {"majority": "majority class", "tfidf": "TF-IDF + logistic regression"}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--part", choices=("make", "stages"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "make":
        make(given.runs, given.rows)
        return
    if given.part == "stages":
        print(json.dumps(stages()))
        return
    commands, parts = [], []
    own = [sys.executable, str(Path(__file__).resolve()), "--runs", str(given.runs), "--rows", str(given.rows)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure([*own, "--part", "make"], folder)
        for repetition in range(given.repetitions):
            words = [sys.executable, "-m", "sentexp", "compare", f"output=compared{repetition}"]
            commands.append(measure(words, folder)[0])
            parts.append(json.loads(measure([*own, "--part", "stages"], folder)[1].splitlines()[-1]))
        report = (folder / "compared0" / "report.html").stat().st_size
    medians = {key: statistics.median(one[key] for one in commands) for key in commands[0]}
    by_stage = {
        stage: {key: statistics.median(one[stage][key] for one in parts) for key in parts[0][stage]}
        for stage in parts[0]
    }
    found = {"runs": given.runs, "rows": given.rows, "command": medians, "stages": by_stage, "report_bytes": report}
    show(found)
    write(found | {"repetitions": {"command": commands, "stages": parts}})


def measure(words: list[str], folder: Path) -> tuple[dict[str, float], str]:
    """Run a command in a folder; return its wall and CPU seconds and its peak memory in GiB, and what it printed.

    The system counts the memory of this process as that of the new one until it has started, so this one stays small.
    """
    output = folder / "output.txt"
    began = time.perf_counter()
    with output.open("w") as out:
        process = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    text = output.read_text()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{text}")
    facts = {"wall_seconds": wall, "cpu_seconds": used.ru_utime + used.ru_stime, "user_seconds": used.ru_utime}
    return facts | {"peak_gib": used.ru_maxrss / 2**20}, text


def make(runs: int, rows: int) -> None:
    """Record a sweep of simulated runs in the current folder."""
    import numpy as np

    from sentexp.tracking.store import PARENT

    chance = np.random.default_rng(0)
    targets = chance.integers(0, 2, rows)
    hard = chance.normal(size=rows)
    table = _texts(targets)
    found = {
        kind: {"title": title, "metrics": {}, "run_id": _record(title, {"baseline": kind}, {}).run_id}
        for kind, title in BASELINES.items()
    }
    for skill, facts in enumerate(found.values()):
        _say(facts["run_id"], table, 0.3 * skill, targets, hard, chance)
    parent = _record(f"sweep of {runs}", {"sweep.identity": "simulated"}, {})
    for number in range(runs):
        rank, rate = RANKS[number % len(RANKS)], RATES[number // len(RANKS) % len(RATES)]
        own = {"peft.r": rank, "optim.lr": f"{rate:g}", "peft.dropout": number // (len(RANKS) * len(RATES)) / 10}
        name = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in own.items() if value)
        record = _record(name, {"identity": f"{number:016x}", PARENT: str(parent.run_id)}, own)
        record.log_text(json.dumps({"baselines": found}), "result.json")
        skill = 1.0 + 0.1 * float(np.log2(rank)) - 0.02 * (np.log2(rate / 8e-4)) ** 2
        _say(record.run_id, table, float(skill), targets, hard, chance)
    parent.finish("FINISHED")


def _texts(targets: Any) -> "pa.Table":
    """Return rows of words with three slice columns; the fourth, of lengths, is made when they are written."""
    import numpy as np
    import pyarrow as pa

    chance = np.random.default_rng(1)
    lengths = np.minimum(300, np.rint(chance.lognormal(2.8, 0.7, len(targets)))).astype(int) + 1
    columns = {
        "text": [" ".join(chance.choice(WORDS, length)) for length in lengths],
        "label": pa.array(targets, pa.int64()),
        "key": pa.array(chance.integers(0, 2**63, len(targets)), pa.uint64()),
        "slice.language": chance.choice(["en", "de", "fr", "ja"], len(targets), p=[0.6, 0.2, 0.15, 0.05]),
        "slice.agreement": chance.choice(["50", "66", "75", "100"], len(targets)),
        "slice.duplicate_free": ["true"] * len(targets),
    }
    return pa.table(columns)


def _record(name: str, tags: dict[str, str], own: dict[str, Any]) -> "RunLogger":
    """Return a run with the parameters, tags and metrics of a real one, still running."""
    import random

    from sentexp.config import TrackingBackend, TrackingConfig, from_conf
    from sentexp.config.metric_names import METRICS
    from sentexp.tracking.run_logger import open_run_logger

    params, versions = _usual()
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, system_metrics=False)
    record = open_run_logger(tracking, name, None, tags | versions | {"command": "python -m sentexp --multirun ..."})
    if "sweep.identity" not in tags:
        record.log_params(params | own)
        costs = ("train/seconds", "seconds", "peak_memory_gib", "parameters/trainable", "saved_mib", "temperature")
        record.log_metrics({name: random.uniform(1, 2) for name in costs})
        record.log_metrics({f"{split}/{name}": random.random() for split in ("validation", "test") for name in METRICS})
    return record


@functools.cache
def _usual() -> tuple[dict[str, Any], dict[str, str]]:
    """Return the parameters and the versions of libraries that a run of the default configuration records."""
    from sentexp.config import flatten, load_config
    from sentexp.tracking.provenance import library_versions

    versions = {f"version.{library}": version for library, version in library_versions().items()}
    return {"peft": "lora", "task": "seq_cls", **flatten(load_config())}, versions


def _say(run_id: str | None, table: "pa.Table", skill: float, targets: Any, hard: Any, chance: Any) -> None:
    """Give a run its answers and end it: surer of the truth with more skill, less so on rows that are hard for all."""
    import numpy as np

    from sentexp.config import TrackingBackend, TrackingConfig, from_conf
    from sentexp.tracking.predictions import file_name, write_predictions
    from sentexp.tracking.store import open_store

    margin = (2 * targets - 1) * skill + hard + 0.5 * chance.normal(size=len(targets))
    positive = 1 / (1 + np.exp(-margin))
    store = open_store(from_conf(TrackingConfig, backend=TrackingBackend.mlflow, system_metrics=False))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / file_name("test")
        write_predictions(table, LABELS, np.stack([1 - positive, positive], 1), file)
        store.client.log_artifacts(run_id, folder)
    store.client.set_terminated(run_id, status="FINISHED")


def stages() -> dict[str, dict[str, float]]:
    """Return the wall and CPU seconds of each stage of a comparison of the latest sweep in the current folder."""
    marks = {"begin": (time.perf_counter(), time.process_time())}

    def mark(stage: str) -> None:
        marks[stage] = (time.perf_counter(), time.process_time())

    from sentexp.compare import command
    from sentexp.config import CompareConfig, TrackingBackend, TrackingConfig, from_conf
    from sentexp.tracking.store import find_store

    config = from_conf(
        CompareConfig, tracking=from_conf(TrackingConfig, backend=TrackingBackend.mlflow, system_metrics=False)
    )
    find_store(config.tracking)
    mark("start")
    comparison = command.load(config)
    mark("load")
    board = command.leaderboard(comparison)
    mark("leaderboard")
    best = [comparison.find("run", name) for name in board.table["configuration"][: command.MOST_SLICED]]
    slices = command.slice_table(comparison, configurations=best)
    mark("slices")
    analysis = command.Analysis(comparison=comparison, board=board, slices=slices, title="simulated")
    command.write(analysis, config, Path("stages"))
    mark("report")
    names = list(marks)
    return {
        after: {
            "wall_seconds": marks[after][0] - marks[before][0],
            "cpu_seconds": marks[after][1] - marks[before][1],
        }
        for before, after in itertools.pairwise(names)
    }


def show(found: dict[str, Any]) -> None:
    """Print what was measured."""
    title = f"{found['runs']} runs of {found['rows']:,} rows, medians"
    table = Table("", "wall s", "CPU s", "peak GiB", title=title, title_justify="left")
    for stage, used in found["stages"].items():
        table.add_row(stage, f"{used['wall_seconds']:.2f}", f"{used['cpu_seconds']:.2f}", "")
    table.add_section()
    used = found["command"]
    seconds = [f"{used[key]:.2f}" for key in ("wall_seconds", "cpu_seconds", "peak_gib")]
    table.add_row("python -m sentexp compare", *seconds)
    Console().print(table)


def write(found: dict[str, Any]) -> None:
    """Write what was measured, on which machine, and how busy that was."""
    from sentexp.system.device import choose_device, describe

    circumstances = {"load_average": os.getloadavg(), "omp_num_threads": os.environ.get("OMP_NUM_THREADS")}
    machine = describe(choose_device("auto")) | {"niceness": os.nice(0)} | circumstances
    (HERE / "compare.json").write_text(json.dumps({"machine": machine} | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
