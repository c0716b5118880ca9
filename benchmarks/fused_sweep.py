"""A sweep of eight LoRA runs: fused, one after the other, and as a loop of transformers' Trainer with PEFT.

    python benchmarks/fused_sweep.py             # peft.r=4,8,16,32 optim.lr=2e-4,5e-4; half an hour on two cores
    python benchmarks/fused_sweep.py --curve     # rows per second and memory of 1 to 32 runs; draws it in docs/images
    python benchmarks/fused_sweep.py --head      # eight head-only runs: features kept, and read anew by each

Each is timed from its command to its last result, in a process and a folder of its own, start-up included; the order
changes from repeat to repeat. All train on the same rows of SST-2 (from ../shared/data/sst2, or --data) for an epoch
and test on its validation split. Of the Trainer's loop --trainer-runs runs are timed, each a command, and their mean
is taken eight times: they are alike. Writes fused_sweep.json, fused_curve.json or fused_head.json.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sentexp.config import load_config
from sentexp.models.fast.fused_forward import ForwardInput, fused_forward
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.cache import clear_cache
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.device import choose_device, describe

HERE = Path(__file__).parent
SST2 = HERE.parents[1] / "shared" / "data" / "sst2"
RANKS, RATES = (4, 8, 16, 32), (2e-4, 5e-4)
AXES = [f"peft.r={','.join(map(str, RANKS))}", f"optim.lr={','.join(map(str, RATES))}"]
COUNTS = (1, 2, 4, 8, 16, 32)
OUT = Console(width=110)


def main() -> None:
    """Measure what is asked for."""
    options = parse()
    if options.trainer_run:
        train_with_trainer(options)
    elif options.curve:
        measure_curve(options)
    elif options.head:
        measure_sweeps(options, "fused_head", head_arms(options))
    else:
        measure_sweeps(options, "fused_sweep", lora_arms(options))


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SST2, help="folder of SST-2 in GLUE's layout")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--rows", type=int, default=320, help="training rows")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--trainer-runs", type=int, default=1, help="0 leaves the Trainer out")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--trainer-run", nargs=2, metavar=("RANK", "RATE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def words(options: argparse.Namespace) -> list[str]:
    """Return the overrides that all of sentexp's commands share."""
    return [
        f"model={options.model}", "data=sst2", f"data.path={options.data.resolve()}",
        f"data.train_subset={options.rows}", "data.validation_subset=64", "tracking.system_metrics=false",
        "baseline=false", "trainer.progress_bar=false",
    ]  # fmt: skip


def lora_arms(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is compared, as functions that return seconds."""
    sweep = ["-m", "sentexp", "--multirun", *AXES, *words(options)]
    found: dict[str, Any] = {
        "fused": lambda: command(sweep),
        "sequential": lambda: command([*sweep, "hydra/launcher=sequential"]),
    }
    if options.trainer_runs:
        found["Trainer loop"] = lambda: trainer_loop(options)
    return found


def head_arms(options: argparse.Namespace) -> dict[str, Any]:
    """Return a sweep of heads: as it is, and with runs that read the texts anew in every epoch, one after the other."""
    axes = ["peft=head", "optim.lr=1e-3,2e-3,5e-3,1e-2", "optim.weight_decay=0,0.01"]
    sweep = ["-m", "sentexp", "--multirun", *axes, *words(options), "trainer.max_epochs=10"]
    return {
        "features kept": lambda: command(sweep),
        "read anew, padded": lambda: command([*sweep, "hydra/launcher=sequential", "trainer.padding_free=false"]),
    }


def command(arguments: list[str]) -> float:
    """Return the seconds that a command takes in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return seconds


def trainer_loop(options: argparse.Namespace) -> float:
    """Return the seconds of a loop over all configurations: the mean of some of its runs, times their number."""
    pairs = [(rank, rate) for rank in RANKS for rate in RATES]
    chosen = pairs[:: len(pairs) // options.trainer_runs][: options.trainer_runs]
    given = ["--data", str(options.data.resolve()), "--rows", str(options.rows), "--model", options.model]
    seconds = [command([__file__, *given, "--trainer-run", str(rank), str(rate)]) for rank, rate in chosen]
    return statistics.fmean(seconds) * len(pairs)


def train_with_trainer(options: argparse.Namespace) -> None:
    """Train and test one configuration as the examples of PEFT do: padded, in float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    rank, rate = int(options.trainer_run[0]), float(options.trainer_run[1])
    folder = resolve_inputs(load_config(f"model={options.model}", "tracking=none")).backbone.folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=32, target_modules="all-linear"))

    def rows(name: str, most: int | None) -> list[dict[str, Any]]:
        with (options.data / f"{name}.tsv").open(newline="") as file:
            read = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:most]
        return [{**tokenizer(f"{row['sentence']}\nSentiment:"), "labels": int(row["label"])} for row in read]

    names = {path.stem for path in options.data.glob("*.tsv")}
    test = "dev" if "dev" in names else "validation"
    arguments = TrainingArguments(
        output_dir="trainer", per_device_train_batch_size=16, per_device_eval_batch_size=32, num_train_epochs=1,
        learning_rate=rate, report_to=[], save_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows("train", options.rows), eval_dataset=rows(test, None),
        data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    print(trainer.evaluate())


def measure_sweeps(options: argparse.Namespace, name: str, compared: dict[str, Any]) -> None:
    """Time every arm in turn, print the medians and write them down."""
    seconds: dict[str, list[float]] = {arm: [] for arm in compared}
    for repeat in range(options.repeats):
        order = list(compared) if repeat % 2 == 0 else list(compared)[::-1]
        for arm in order:
            seconds[arm].append(compared[arm]())
            OUT.print(f"{arm}: {seconds[arm][-1]:.0f} s")
    first = next(iter(compared))
    table = Table("arm", "seconds (median)", f"times {first}", title=f"{name}: eight runs, {options.rows} rows")
    for arm, taken in seconds.items():
        ratio = statistics.median(taken) / statistics.median(seconds[first])
        table.add_row(arm, f"{statistics.median(taken):.0f}", f"{ratio:.2f}")
    OUT.print(table)
    facts = {"rows": options.rows, "seconds": seconds, "machine": describe(choose_device("auto"))}
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def measure_curve(options: argparse.Namespace) -> None:
    """Time passes of 1 to 32 runs over one backbone, forward and backward, 16 rows of SST-2 each."""
    device = choose_device("auto")
    overrides = [*words(options), "sweep.name=x", "tracking=none", "peft.r=8", "data.train_subset=640"]
    inputs = prepare_inputs(resolve_inputs(load_config(*overrides)), show=False)
    runs = []
    for number in range(max(COUNTS)):
        inputs.config.seed = number
        model, _ = build_model(inputs)
        module = build_module(inputs, model).to(device).train()
        runs.append(module.classifier.packed.fast_layers)
    batches = [batch.texts for batch in build_data(inputs).train_dataloader()]
    result: dict[str, dict[str, float]] = {}
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    memory: dict[int, float] = {}
    for repeat in range(max(3, options.repeats) + 1):
        for count in COUNTS:
            readings = [
                ForwardInput(run, batches[(repeat + number) % len(batches)]) for number, run in enumerate(runs[:count])
            ]
            if repeat:
                times[count].append(timed_pass(readings, device))
            else:  # the first round warms up
                memory[count] = kept_gib(readings)
    weights = sum(part.untyped_storage().nbytes() for part in runs[0].backbone.parameters()) / 2**30
    table = Table("runs", "rows/s", "times one run", "GiB kept", title=f"passes over one backbone of {weights:.2f} GiB")
    for count in COUNTS:
        rate = 16 * count / statistics.median(times[count])
        result[str(count)] = {"rows_per_second": rate, "kept_gib": memory[count]}
        table.add_row(str(count), f"{rate:.1f}", f"{rate / result['1']['rows_per_second']:.2f}", f"{memory[count]:.2f}")
    OUT.print(table)
    facts = {
        "runs": result,
        "weights_gib": weights,
        "machine": describe(device),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    (HERE / "fused_curve.json").write_text(json.dumps(facts, indent=2) + "\n")
    draw(result)
    clear_cache()


def timed_pass(readings: list[ForwardInput], device: torch.device) -> float:
    """Return the seconds of a pass, forward and backward."""
    began = time.perf_counter()
    sum(state.float().sum() for state in fused_forward(readings)).backward()  # type: ignore[union-attr]
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    for reading in readings:
        for parameter in reading.layers.adapters.parameters:
            parameter.grad = None
    return seconds


def kept_gib(readings: list[ForwardInput]) -> float:
    """Return what a pass keeps for its backward pass, the frozen weights left out, in GiB."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = fused_forward(readings)
    weights = (part for reading in readings for part in reading.layers.backbone.parameters())
    frozen = {part.untyped_storage().data_ptr() for part in weights}  # the pass may have moved them
    kept = sum(size for place, size in sizes.items() if place not in frozen) / 2**30
    sum(state.float().sum() for state in states).backward()  # type: ignore[union-attr]
    return kept


def draw(result: dict[str, dict[str, float]]) -> None:
    """Draw rows per second and memory against the number of runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
    counts = [int(count) for count in result]
    for axis, key, title in zip(
        axes, ("rows_per_second", "kept_gib"), ("rows per second", "GiB kept for the backward pass"), strict=True
    ):
        axis.plot(counts, [facts[key] for facts in result.values()], "o-")
        axis.set(xscale="log", xlabel="runs over one backbone", title=title, ylim=(0, None))
        axis.set_xticks(counts, labels=[str(count) for count in counts])
        axis.minorticks_off()
    figure.savefig(HERE.parent / "docs" / "images" / "fused_sweep.png", dpi=150)


if __name__ == "__main__":
    main()
