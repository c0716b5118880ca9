"""The memory of a long training: with as many kernels as oneDNN keeps by itself, and with as many as sentexp lets it.

    python benchmarks/training_memory.py                                    # the tiny model, 10,000 steps: 20 minutes
    python benchmarks/training_memory.py --model smollm2_135m --steps 100   # the default's shapes

Rows without padding have another shape in each batch, and oneDNN compiles and keeps a kernel for each. Both arms are
commands of their own, one after the other, in one thread; their resident memory is read twenty times a second. Writes
training_memory.json beside this, an entry for each model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from sentexp.system.device import choose_device, describe
from sentexp.system.memory import KERNEL_CACHES

FILE = Path(__file__).with_suffix(".json")
ARMS = {"1,024 kernels (oneDNN)": "1024", "64 kernels (sentexp)": None}
OVERRIDES = [
    "trainer.max_epochs=10000",
    "trainer.eval_steps=1000000",
    "trainer.save_steps=1000000",
    "trainer.progress_bar=false",
    "tracking=none",
    "data.train_subset=null",
    "data.validation_subset=32",
    "data.test_fraction=0.01",
]
OUT = Console(width=110)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    table = Table("", "MiB after a tenth", "half", "all", "grown by", "CPU seconds")
    found = {}
    for title, kept in ARMS.items():
        found[title] = measured(options.model, options.steps, kept)
        *sizes, seconds = found[title].values()
        table.add_row(title, *(f"{size:,.0f}" for size in (*sizes, sizes[-1] - sizes[0])), f"{seconds:,.0f}")
    OUT.print(table)
    entries = json.loads(FILE.read_text()) if FILE.is_file() else {}
    entries[options.model] = {"steps": options.steps, "machine": describe(choose_device("cpu")), "arms": found}
    FILE.write_text(json.dumps(entries, indent=2) + "\n")


def measured(model: str, steps: int, kept: str | None) -> dict[str, float]:
    """Return the resident memory in MiB after parts of the training, and the CPU seconds of the command."""
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}
    environment |= dict.fromkeys(KERNEL_CACHES, kept) if kept else {}
    environment["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sentexp", *OVERRIDES, f"model={model}", f"trainer.max_steps={steps}"]
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        sizes, cpu = [], 0.0
        while process.poll() is None:
            metrics = next(Path(folder).glob("outputs/*/metrics.jsonl"), None)
            if metrics is not None:
                sizes.append(process.memory_info().rss / (1 << 20))
                cpu = sum(process.cpu_times()[:2])
            time.sleep(0.05)
        if process.returncode:
            sys.exit(process.returncode)
    parts = {name: int(len(sizes) * share) for name, share in (("tenth", 0.1), ("half", 0.5), ("all", 0.95))}
    return {name: statistics.median(sizes[max(at - 10, 0) : at + 10]) for name, at in parts.items()} | {"cpu": cpu}


if __name__ == "__main__":
    main()
