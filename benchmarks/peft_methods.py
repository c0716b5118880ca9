"""Which method of PEFT: the studies of docs/benchmarks.md, with the embedded encoder on film reviews and on tweets.

    python benchmarks/peft_methods.py study                      # film reviews; hours; the same command resumes it
    python benchmarks/peft_methods.py study_tweets --data tweets
    python benchmarks/peft_methods.py study --read               # of what has been trained so far

In the folder each method is trained with a third of its usual learning rate, that rate, and three times it. The
rate is chosen by accuracy on validation with the first seed; the other seeds train with that rate alone. Then all are
compared on the test rows. The runs follow each other on one thread.

Seconds of a run are of no use beside other work. So the cost of a step is measured apart: CPU seconds of one thread, by
turns in one process on the same rows; a first round warms up.

Writes peft_methods_<data>.json beside this, the picture in docs/images, and the table in docs/benchmarks.md, between
marks.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import numpy as np
import torch
from arms import Ground, Sentexp

from sentexp.compare import Leaderboard, leaderboard, load_runs
from sentexp.compare.choosing import with_chosen
from sentexp.compare.comparison import Configuration
from sentexp.compare.leaderboard import ranked
from sentexp.compare.sweep_plots import pareto_picture
from sentexp.config import load_config
from sentexp.plots.style import to_svg
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.device import choose_device, describe
from sentexp.tracking.provenance import library_versions
from sentexp.training.adalora import rank_allocation

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "benchmarks.md"
END = "<!-- to here -->"
DATA = ("rotten_tomatoes", "tweets")
EXPERIMENT, METRIC, STEPS = "peft_methods", "accuracy", 64
METHODS = (
    "head", "full", "bitfit", "ln_tuning", "ia3", "lora", "dora", "vera", "oft", "vblora", "road", "miss", "hira",
    "adalora", "c3a", "shira",
)  # fmt: skip
SHARED = (
    "model=minilm",
    "data.train_subset=512",
    "data.validation_subset=400",
    "trainer.batch_size=8",
)
RECORDED = (
    "baseline=false",
    f"tracking.experiment={EXPERIMENT}",
    "tracking.system_metrics=false",
    "trainer.save_steps=64",
    "trainer.progress_bar=false",
    "hydra/launcher=sequential",
)


class CpuClock(L.Callback):
    """Notes the CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note when it begins."""
        self._began = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note how long it took."""
        self.seconds.append(time.process_time() - self._began)


def main() -> None:
    """Train what is left, compare, measure steps, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", choices=DATA, default=DATA[0])
    parser.add_argument("--read", action="store_true", help="train nothing, and time no steps that have been timed")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of six steps a method (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    words = sweep_words(given.data, given.methods, given.seeds)
    if not given.read:
        train(words, given.folder)
    comparison = load_runs(f"sqlite:///{given.folder.absolute() / 'mlflow.db'}", experiment_name=EXPERIMENT)
    board = leaderboard(with_chosen(comparison, "optim.lr", METRIC), METRIC)
    rows = [row_of(board, one) for one in ranked(board)]
    names = [row["method"] for row in rows]
    steps = timed_before(file_of(given.data), names) if given.read else {}
    steps |= cpu_of_steps(given.data, [name for name in names if name not in steps], given.rounds)
    for row in rows:
        row["cpu_seconds_per_step"] = steps[row["method"]]
    by_configuration = {one.name: steps[row["method"]] for one, row in zip(ranked(board), rows, strict=True)}
    board.table["seconds"] = STEPS * board.table["configuration"].map(by_configuration)  # for the picture
    notes = [one for one in board.notes if "trains fastest" not in one]  # which is of seconds beside other work
    tried = [facts_of(run) for one in comparison.configurations for run in one.runs]
    report = {
        "machine": describe(choose_device("auto")) | {"threads": 1, "load_average": os.getloadavg()},
        "versions": library_versions(),
        "command": ["python", "-m", "sentexp", *words],
        "test_rows": len(comparison.targets),
        "methods": rows,
        "runs": tried,
        "notes": notes,
    }
    file_of(given.data).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    figure = pareto_picture(board)
    if figure is not None:
        picture = DOCS / "images" / f"peft_methods_{given.data}.svg"
        picture.write_text(to_svg(figure), encoding="utf-8")
    counts = sorted({row["seeds"] for row in rows})
    seeds = f"{' to '.join(map(str, sorted({counts[0], counts[-1]})))} seed{'s' * (counts[-1] > 1)} at the chosen rate"
    trained = f"{len(rows)} of {len(given.methods)} methods, {len(tried)} runs, {seeds}"
    says = ["What `compare` says of it:", "", *(f"- {one}" for one in notes)]
    text = "\n".join([f"{trained}, {len(comparison.targets)} test rows:", "", *table(rows), "", *says])
    begin = f"<!-- written by benchmarks/peft_methods.py --data {given.data} -->"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    print(text)


def file_of(data: str) -> Path:
    """Return where the figures of a study are."""
    return HERE / f"peft_methods_{data}.json"


def sweep_words(data: str, methods: list[str], seeds: int) -> list[str]:
    """Return the words of the sweep."""
    numbers = ",".join(map(str, range(1, seeds + 1)))
    swept = (f"peft={','.join(methods)}", "optim.lr_scale=0.3,1,3", f"seed={numbers}")
    return ["--multirun", *swept, f"data={data}", *SHARED, "sweep.choose=optim.lr", "sweep.choose_seeds=1", *RECORDED]


def train(words: list[str], folder: Path) -> None:
    """Train what is not finished; methods that do not fit the model fail with a sentence, and the others continue."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "sentexp", *words], cwd=folder, env=environment, check=False)


def row_of(board: Leaderboard, one: Configuration) -> dict[str, Any]:
    """Return what is known of a method at its rate; costs are means over its seeds."""
    (row,) = board.table[board.table["configuration"] == one.name].to_dict("records")
    settings = one.runs[0].settings
    kept = ("rank", METRIC, f"{METRIC}_low", f"{METRIC}_high", "seeds", "trainable_parameters", "saved_mib")
    kept += ("peak_memory_gib", "to_best", "to_best_low", "to_best_high", "to_best_p_holm", "f1_macro", "auroc_macro")
    found = {key: row[key] if key == "rank" else float(row[key]) for key in kept}
    rate = {"learning_rate": float(settings["optim.lr"]), "usual": float(settings["peft.usual_lr"])}
    return {"method": settings["peft"], **rate, **found, "rank": int(found["rank"]), "seeds": int(found["seeds"])}


def facts_of(run: Any) -> dict[str, Any]:
    """Return what is published of a run."""
    metrics = {key: run.metrics.get(key) for key in ("best/accuracy", "test/accuracy", "train/seconds")}
    rate = float(run.settings["optim.lr"])
    return {"method": run.settings["peft"], "learning_rate": rate, "seed": int(run.seed), **metrics}


def timed_before(file: Path, methods: list[str]) -> dict[str, float]:
    """Return the CPU seconds of a step of those methods that a file of figures has."""
    rows = json.loads(file.read_text(encoding="utf-8"))["methods"] if file.is_file() else []
    return {row["method"]: row["cpu_seconds_per_step"] for row in rows if row["method"] in methods}


def cpu_of_steps(data: str, methods: list[str], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of a training step of each method."""
    words = (f"data={data}", *SHARED, "tracking=none", "trainer.progress_bar=false")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name in methods:
            ground = Ground(prepare_inputs(resolve_inputs(load_config(*words, f"peft={name}")), show=False))
            arm, clock = Sentexp(ground=ground), CpuClock()
            module, data = arm.load()
            watching = [*rank_allocation(module.classifier.model, ground.inputs.config.peft), clock]
            arm.run("train", ground.draw(number, 6 * ground.batch_size, ground.batch_size), module, data, *watching)
            seconds[name] += clock.seconds[1:] if number else []
    return {name: float(np.median(found)) for name, found in seconds.items()}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    heads = (
        "rank",
        "`peft=`",
        "`optim.lr`",
        "accuracy",
        "95 % interval",
        "trained",
        "MiB saved",
        "CPU ms a step",
        "GiB",
    )
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        low, high = row["accuracy_low"], row["accuracy_high"]
        lines.append(
            (
                str(row["rank"]),
                f"`{row['method']}`",
                f"{row['learning_rate']:g}",
                f"{row['accuracy']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{row['trainable_parameters']:,.0f}",
                f"{row['saved_mib']:.2f}",
                f"{1000 * row['cpu_seconds_per_step']:.0f}",
                f"{row['peak_memory_gib']:.2f}",
            )
        )
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
