"""A training step where LoRA adapts the upper layers alone: states below them kept, or computed in every step.

    python benchmarks/upper_layers.py              # the upper 2, 4 and 8 layers of the default model; five minutes
    python benchmarks/upper_layers.py --layers 6   # the upper 6

Both take turns on the same batches of 16 reviews, forward and backward, in one thread; times are CPU seconds, so that
other work on the machine does not count. What is kept is computed in the first round, which is shown by itself. Writes
upper_layers.json beside this.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from sentexp.config import load_config
from sentexp.data.batch import Batch
from sentexp.models.fast.row_cache import RowCache
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.inputs import RunInputs, prepare_inputs, resolve_inputs
from sentexp.system.device import choose_device, describe
from sentexp.training.module import ClassifierModule

HERE = Path(__file__).parent
ROUNDS = 4
OUT = Console(width=110)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, default=64, help="of a round (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("upper layers", "every step", "first round", "kept", "ratio", title="CPU seconds of a training step")
    found = {}
    for count in options.layers:
        inputs = inputs_of(options, count)
        times = timed(inputs)
        anew, kept = (statistics.median(times[keeps][1:]) for keeps in (False, True))
        found[count] = {"every step": anew, "first round": times[True][0], "kept": kept}
        table.add_row(str(count), f"{anew:.3f}", f"{times[True][0]:.3f}", f"{kept:.3f}", f"{anew / kept:.2f}")
    OUT.print(table)
    facts = {"rows": options.rows, "seconds": found, "machine": describe(choose_device("cpu"))}
    (HERE / "upper_layers.json").write_text(json.dumps(facts, indent=2) + "\n")


def inputs_of(options: argparse.Namespace, count: int) -> RunInputs:
    """Return the inputs of a run that adapts so many of the last layers."""
    common = [f"model={options.model}", f"data.train_subset={options.rows}", "data.validation_subset=32"]
    common += ["trainer.accelerator=cpu", "tracking=none", "baseline=false"]
    folder = resolve_inputs(load_config(*common)).backbone.folder
    last = AutoConfig.from_pretrained(folder).num_hidden_layers
    upper = ",".join(map(str, range(last - count, last)))
    return prepare_inputs(resolve_inputs(load_config(*common, f"peft.layers_to_transform=[{upper}]")), show=False)


def timed(inputs: RunInputs) -> dict[bool, list[float]]:
    """Return the median CPU seconds of a step in each round, by whether states are kept."""
    modules = {keeps: module_of(inputs, keeps) for keeps in (True, False)}
    batches: list[Batch] = list(build_data(inputs).train_dataloader())
    rounds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        taken: dict[bool, list[float]] = {True: [], False: []}
        for batch in batches:
            for keeps, module in modules.items():
                taken[keeps].append(seconds_of_step(module, batch))
        for keeps, seconds in taken.items():
            rounds[keeps].append(statistics.median(seconds))
    return rounds


def module_of(inputs: RunInputs, keeps: bool) -> ClassifierModule:
    """Return what a run trains, with or without what keeps the states of rows."""
    model, _ = build_model(inputs)
    module = build_module(inputs, model).train()
    module.classifier.packed.row_cache = RowCache() if keeps else None
    return module


def seconds_of_step(module: ClassifierModule, batch: Batch) -> float:
    """Return the CPU seconds of losses and gradients."""
    began = time.process_time()
    module.classifier.losses(batch.texts, batch.labels).sum().backward()
    seconds = time.process_time() - began
    module.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
