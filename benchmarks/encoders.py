"""Encoders: each architecture is trained and then evaluated from its files; the embedded encoder beside the default.

    python benchmarks/encoders.py                  # two epochs of 200 rows for each architecture; five minutes
    python benchmarks/encoders.py --kind bert      # of one
    python benchmarks/encoders.py --embedded       # model=minilm and the default model as they are; half an hour

An architecture has small random weights and a small tokenizer, in the layout of the hub, as the tests write them (see
tests/support/encoders.py). LoRA trains on the embedded reviews in float32. Then `python -m sentexp evaluate`, in a
process of its own, reads the adapter from its files and measures the same test rows: its accuracy must be the run's,
and its loss too, within the rounding of float32. Else the script fails.

`--embedded` runs `python -m sentexp` as a user does, offline, each in a process of its own, with a cache that
`python -m sentexp prepare` has filled before: accuracy on the carved test, and seconds from start to end.

Writes encoders.json, and with --embedded encoders_embedded.json, beside this.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sentexp.models.encoders import ENCODERS
from sentexp.system.device import choose_device, describe
from sentexp.tracking.provenance import library_versions

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "tests" / "support"
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1"}
ROWS, EPOCHS = 200, 2
LIMIT = 1e-5
"""Difference of losses that rounding in float32 can make."""
OUT = Console(width=120)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=tuple(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--rows", type=int, default=ROWS, help="of training (default: %(default)s)")
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("words", nargs="*", help="overrides of the runs of --embedded, as in data.train_subset=64")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.embedded:
            compare_embedded(given.words, Path(folder))
        else:
            compare_files(given.kind, given.rows, Path(folder))


def compare_files(kinds: list[str], rows: int, folder: Path) -> None:
    """Train each architecture, and evaluate it from its files.

    Raises:
        SystemExit: the numbers differ.
    """
    sys.path.insert(0, str(SUPPORT))  # before this file, which has the same name
    from encoders import write_encoder

    table = Table("architecture", "seconds", "test accuracy", "from its files", "test loss", "from its files")
    found: dict[str, Any] = {}
    for kind in kinds:
        write_encoder(folder / kind, kind)
        found[kind] = train_and_read(f"model.path={folder / kind}", rows, folder / f"{kind}-runs")
        run, read = found[kind]["run"], found[kind]["read"]
        accuracies = [f"{metrics['test/accuracy']:.4f}" for metrics in (run, read)]
        losses = [f"{metrics['test/loss']:.6f}" for metrics in (run, read)]
        table.add_row(kind, f"{found[kind]['seconds']:.1f}", *accuracies, *losses)
    OUT.print(f"{EPOCHS} epochs of {rows} rows, LoRA, float32", table)
    write("encoders.json", {"rows": rows, "epochs": EPOCHS, "architectures": found})
    wrong = [kind for kind, facts in found.items() if not agree(facts["run"], facts["read"])]
    if wrong:
        raise SystemExit(f"From their files other numbers are measured of {', '.join(wrong)}.")


def train_and_read(model: str, rows: int, runs: Path) -> dict[str, Any]:
    """Return the metrics of a run, those that its files give in another process, and the seconds of the run."""
    sizes = [f"data.train_subset={rows}", "data.validation_subset=100", f"trainer.max_epochs={EPOCHS}"]
    plain = ["trainer.precision=fp32", "baseline=false", "plots=false"]
    seconds, result = run_of([model, "peft=lora", "optim.lr=1e-2", *sizes, *plain], runs)
    sentexp("evaluate", f"run={result}", "data=rotten_tomatoes", "split=test", f"output_dir={runs}", "tracking=none")
    (file,) = runs.glob("evaluation-*/evaluation.json")
    own = json.loads((result / "result.json").read_text())["metrics"]
    return {"seconds": seconds, "run": of_test(own), "read": of_test(json.loads(file.read_text())["metrics"])}


def compare_embedded(words: list[str], folder: Path) -> None:
    """Run the embedded encoder and the default model as a user does."""
    table = Table("model", "seconds", "test accuracy", "test loss", "trained parameters")
    found: dict[str, Any] = {}
    for model in ("minilm", "smollm2_135m"):
        sentexp("prepare", f"model={model}", *words)
        seconds, result = run_of([f"model={model}", *words], folder / model)
        metrics = json.loads((result / "result.json").read_text())["metrics"]
        found[model] = {"seconds": seconds, "metrics": metrics}
        accuracy, loss = (f"{metrics[name]:.4f}" for name in ("test/accuracy", "test/loss"))
        table.add_row(model, f"{seconds:.0f}", accuracy, loss, f"{metrics['parameters/trainable']:,.0f}")
    OUT.print(f"python -m sentexp {' '.join(words)}", table)
    write("encoders_embedded.json", {"words": words, "models": found})


def run_of(words: list[str], runs: Path) -> tuple[float, Path]:
    """Return the seconds of a run in a process of its own, from start to end, and its folder."""
    began = time.perf_counter()
    sentexp(*words, "tracking=none", f"output_dir={runs}")
    seconds = time.perf_counter() - began
    (result,) = (file.parent for file in runs.glob("*/result.json") if is_own(file))
    return seconds, result


def is_own(file: Path) -> bool:
    """Tell whether a result is that of a trained run, and of no baseline."""
    return json.loads(file.read_text())["parameters"]["trainable"]["head"] > 0


def sentexp(*words: str) -> None:
    """Run the command in a process of its own, without the network.

    Raises:
        SystemExit: it fails.
    """
    call = [sys.executable, "-m", "sentexp", *words]
    done = subprocess.run(call, env=OFFLINE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"python -m sentexp {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")


def of_test(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the test rows."""
    return {name: value for name, value in metrics.items() if name in ("test/accuracy", "test/loss")}


def agree(run: dict[str, float], read: dict[str, float]) -> bool:
    """Tell whether a run and its files give the same numbers."""
    return run["test/accuracy"] == read["test/accuracy"] and abs(run["test/loss"] - read["test/loss"]) < LIMIT


def write(name: str, report: dict[str, Any]) -> None:
    """Write what was measured, and on which machine."""
    facts = {"machine": describe(choose_device("auto")), "versions": library_versions()}
    (HERE / name).write_text(json.dumps(facts | report, indent=2) + "\n")


if __name__ == "__main__":
    main()
