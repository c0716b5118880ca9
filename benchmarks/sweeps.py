"""Sweeps against single commands: what a finished run costs when it is skipped, and what a run costs beside others.

    python benchmarks/sweeps.py                    # three repetitions of each, alternating, minutes on two cores

Skipping: the same sweep of 21 finished runs and of one, given again; the difference by 20. Running: four runs as one
sweep against four commands. Ending: a sweep of 20 runs, as it is, and as it was when each run drew its pictures and
looked for garbage among all imports. All on the tiny model, so that it is the cost of all that is not training. Writes
sweeps.json beside this.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sentexp.system.device import choose_device, describe

HERE = Path(__file__).parent
QUICK = [
    "model=tiny",
    "data.train_subset=64",
    "data.test_fraction=0.02",
    "trainer.progress_bar=false",
    "tracking.system_metrics=false",
    "baseline=false",
]
RANKS = range(2, 23)
TWENTY = f"peft.r={','.join(map(str, RANKS[:20]))}"
KINDS = ("skip 21", "skip 1", "one sweep", "four commands", "20 runs", "20 runs, drawn and unfrozen")
COMMAND = ("-m", "sentexp")
UNFROZEN = (
    "-c",
    "from sentexp.cli.main import main; from sentexp.system import garbage; "
    "garbage.freeze_imports = lambda *_: None; main()",
)


def seconds(folder: Path, *words: str, program: tuple[str, ...] = COMMAND) -> float:
    """Return how long the command takes in a folder."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *program, *QUICK, *words], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Time both, alternating, and write the medians down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    many = f"peft.r={','.join(map(str, RANKS))}"
    taken: dict[str, list[float]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as name:
        finished = Path(name)
        seconds(finished, "--multirun", many)
        seconds(finished, "--multirun", "peft.r=2")
        for repetition in range(repetitions):
            taken["skip 21"].append(seconds(finished, "--multirun", many))
            taken["skip 1"].append(seconds(finished, "--multirun", "peft.r=2"))
            seed = f"seed={repetition}"
            taken["one sweep"].append(seconds(finished, "--multirun", "peft.r=2,4,8,16", seed, "output_dir=swept"))
            alone = [f"tracking.experiment=alone{repetition}", "output_dir=alone", seed]
            taken["four commands"].append(sum(seconds(finished, f"peft.r={rank}", *alone) for rank in (2, 4, 8, 16)))
            fresh = [TWENTY, f"seed={100 + repetition}", "hydra/launcher=sequential"]
            taken["20 runs"].append(seconds(finished, "--multirun", *fresh, "output_dir=twenty"))
            old = ["output_dir=drawn", f"tracking.experiment=drawn{repetition}", "plots=true"]
            taken["20 runs, drawn and unfrozen"].append(seconds(finished, "--multirun", *fresh, *old, program=UNFROZEN))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    found = {
        "machine": describe(choose_device("auto")),
        "seconds": taken,
        "medians": medians,
        "seconds_per_ten_skipped": (medians["skip 21"] - medians["skip 1"]) / 2,
        "four_commands_by_one_sweep": medians["four commands"] / medians["one sweep"],
        "drawn_and_unfrozen_by_20_runs": medians["20 runs, drawn and unfrozen"] / medians["20 runs"],
    }
    (HERE / "sweeps.json").write_text(json.dumps(found, indent=2) + "\n")
    table = Table("", "seconds")
    for name, value in medians.items():
        table.add_row(name, f"{value:.1f}")
    table.add_section()
    table.add_row("ten skipped runs", f"{found['seconds_per_ten_skipped']:.2f}")
    table.add_row("four commands / one sweep", f"{found['four_commands_by_one_sweep']:.2f}")
    table.add_row("20 runs, before / now", f"{found['drawn_and_unfrozen_by_20_runs']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
