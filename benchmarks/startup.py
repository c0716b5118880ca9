"""How long commands take to start, as ratios to `python -c "import torch"` in the same rounds.

    python benchmarks/startup.py                # 7 rounds on the tiny model: about ten minutes on two cores
    python benchmarks/startup.py --rounds 3

Every round runs each command once, in processes of their own and in turn, so that a slower machine slows all of
them. The ratio of a command is the median over the rounds of its time divided by that of the import in the same round:
once on the clock, and once in seconds of the processor, which other programs on the machine do not lengthen.
The first step of a run is seen when its loss is recorded. Writes startup.json beside this.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
SENTEXP = [sys.executable, "-m", "sentexp"]
TRAINING = ["model=tiny", "data=csv", "data.path=reviews.csv", "trainer.progress_bar=false", "baseline=false"]
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "--help": [*SENTEXP, "--help"],
    "a wrong key": [*SENTEXP, "peft.r=0"],
    "runs": [*SENTEXP, "runs"],
    "compare": [*SENTEXP, "compare"],
    "predict --text": [*SENTEXP, "predict", "run=best", "--text", "a warm and funny film"],
    "predict of 8 rows": [*SENTEXP, "predict", "run=best", "input=few.csv", "output=-", "text=text"],
}
AIMS = {"runs": 2.0, "compare": 2.0, "predict --text": 4.0, "predict of 8 rows": 4.0, "first step": 6.0}
"""Ratios that are aimed at, on two cores with a warm disk."""
EVERY = 0.02
"""Seconds between two looks whether a run has made its first step."""


class Seconds(NamedTuple):
    """What a command takes: on the clock, and of the processor."""

    clock: float
    processor: float


def main() -> None:
    """Measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_reviews(folder / "reviews.csv", 400)
        write_reviews(folder / "few.csv", 8)
        run([*SENTEXP, "--multirun", "peft.r=4,8", *TRAINING], folder)
        seconds: dict[str, list[Seconds]] = {name: [] for name in [*COMMANDS, "first step"]}
        for number in range(rounds + 1):  # the first warms the disk
            found = {name: run(words, folder) for name, words in COMMANDS.items()}
            found["first step"] = first_step(folder, seed=1000 + number)
            for name, value in found.items():
                seconds[name] += [value] if number else []
    ratios = {name: Seconds(*(ratio(seconds, name, kind) for kind in range(2))) for name in seconds}
    facts = {
        "cores": os.cpu_count(),
        "rounds": rounds,
        "ratios": {name: value._asdict() for name, value in ratios.items()},
        "seconds": {name: [value._asdict() for value in values] for name, values in seconds.items()},
    }
    (HERE / "startup.json").write_text(json.dumps(facts, indent=2) + "\n")
    show(ratios, seconds)


def ratio(seconds: dict[str, list[Seconds]], name: str, kind: int) -> float:
    """Return the median over the rounds of a command's time divided by that of the import."""
    return median(one[kind] / torch[kind] for one, torch in zip(seconds[name], seconds["import torch"], strict=True))


def write_reviews(file: Path, rows: int) -> None:
    """Write reviews that are easily classified."""
    draw = random.Random(0)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        for number in range(rows):
            label = draw.choice(["good", "bad"])
            writer.writerow([f"film {number} is {'warm and funny' if label == 'good' else 'cold and dull'}", label])


def run(words: list[str], folder: Path) -> Seconds:
    """Return the seconds that a command takes."""
    began, before = time.monotonic(), os.times()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "peft.r=0" in words, done.stderr
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(time.monotonic() - began, processor)


def first_step(folder: Path, seed: int) -> Seconds:
    """Return the seconds until a run has recorded its first loss."""
    before = set(folder.glob("outputs/*/metrics.jsonl"))
    words = [*SENTEXP, *TRAINING, f"seed={seed}", "trainer.log_every_n_steps=1"]
    began = time.monotonic()
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not set(folder.glob("outputs/*/metrics.jsonl")) - before:
            assert process.poll() is None, "the run has ended without a step"
            time.sleep(EVERY)
        seconds = Seconds(time.monotonic() - began, processor_seconds(process.pid))
        process.wait()
    return seconds


def processor_seconds(process: int) -> float:
    """Return the seconds of the processor that a running process has used (Linux)."""
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def show(ratios: dict[str, Seconds], seconds: dict[str, list[Seconds]]) -> None:
    """Print a line for each command."""
    table = Table("command", "seconds", "times import torch", "the same, of the processor", "aim")
    for name, found in ratios.items():
        aim = f"at most {AIMS[name]:g}" if name in AIMS else ""
        clock = median(value.clock for value in seconds[name])
        table.add_row(name, f"{clock:.2f}", f"{found.clock:.2f}", f"{found.processor:.2f}", aim)
    Console().print(table)


if __name__ == "__main__":
    main()
