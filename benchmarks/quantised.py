"""Frozen weights as they are stored: bytes, what rounding loses, packing, steps of training and their memory.

    python benchmarks/quantised.py                                    # every storage that is installed; twenty minutes
    python benchmarks/quantised.py --storage nf4 int8_weight_only     # of two
    python benchmarks/quantised.py --model tiny --steps 2 --repeats 1 # does it run; two minutes

LoRA trains over the embedded model (rank 16, all linear layers) with rows without padding; `padded` are the same steps
through transformers' layers. All storages are in one process and take turns: in each round each loads the model anew
and trains on the same rows; a first round warms up. Ratios are those of a round to `none`, and the medians of these.
The peak of memory is that of loading and training in a process of its own, once each. The error of a weight is
|W - Q| / |W| over all packed layers. Rows are the embedded reviews.

int8_weight_only and float8_weight_only come with `pip install '.[torchao]'`, hqq4 with `pip install '.[hqq]'`.

Writes quantised.json beside this and, of the embedded model, the table in docs/benchmarks.md, between its marks.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ALPHA, RANK, RATE, Ground, Rows, Sentexp, take
from rich.console import Console
from rich.table import Table
from torch import nn

from sentexp.config import Quantization, load_config
from sentexp.models.dequantize import dense_weight, is_packed
from sentexp.run.build import build_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.device import choose_device, describe
from sentexp.tracking.provenance import library_versions

HERE = Path(__file__).parent
DEVICE = choose_device("auto")
INSTALLED = [one.name for one in Quantization if one.package is None or find_spec(one.package)]
OUT = Console(width=130)
PAGE = HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- written by benchmarks/quantised.py -->", "<!-- to here -->"
COLUMNS = ("storage", "weights MiB", "error", "packed in s", "s/step", "(quartiles)", "of none", "padded", "peak GiB")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="+", choices=INSTALLED, default=INSTALLED)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="of a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--alone", choices=INSTALLED, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of each product of int8
    if given.alone:
        ground = grounds([given.alone], given)[given.alone]
        print(json.dumps(take(Sentexp(ground=ground), drawn(ground, 0, given), DEVICE).peak_gib))
        return
    compare(given)


def grounds(names: list[str], given: argparse.Namespace) -> dict[str, Ground]:
    """Return what the runs over each storage stand on; the tokens are the same."""
    config = load_config(
        f"model={given.model}",
        "data=rotten_tomatoes",
        "peft=lora",
        f"peft.r={RANK}",
        f"peft.alpha={ALPHA}",
        f"optim.lr={RATE}",
        f"trainer.batch_size={given.batch_size}",
        "model.keep_dequantized=false",
        "trainer.progress_bar=false",
        "tracking=none",
    )
    inputs = prepare_inputs(resolve_inputs(config), show=False)
    stored = {name: replace(config.peft, quantization=Quantization[name]) for name in names}
    return {name: Ground(replace(inputs, config=replace(inputs.config, peft=peft))) for name, peft in stored.items()}


def drawn(ground: Ground, number: int, given: argparse.Namespace) -> Rows:
    """Return the rows of a round; nothing is evaluated but one batch."""
    return ground.draw(number, given.steps * given.batch_size, given.batch_size)


def compare(given: argparse.Namespace) -> None:
    """Measure all storages by turns."""
    names = ["none", *(name for name in given.storage if name != "none")]
    ground_of = grounds(names, given)
    weights = {name: of_weights(ground) for name, ground in ground_of.items()}
    arms = {
        (name, free): Sentexp(ground=ground_of[name], padding_free=free) for name in names for free in (True, False)
    }
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in arms}
    for number in range(given.repeats + 1):
        rows = drawn(ground_of["none"], number, given)
        for key, arm in arms.items():
            step = take(arm, rows, DEVICE).train / given.steps
            seconds[key] += [step] if number else []
            OUT.print(f"[dim]round {number} of {given.repeats}: {key[0]}: {step:.3f} s a step[/dim]")
    found = {}
    for name in names:
        ratios = {
            "without_padding": ratio(seconds[name, True], seconds["none", True]),
            "padded": ratio(seconds[name, False], seconds["none", False]),
        }
        steps = {"without_padding": spread(seconds[name, True]), "padded": spread(seconds[name, False])}
        found[name] = weights[name] | {
            "seconds_per_step": steps,
            "ratio_to_none": ratios,
            "peak_gib": alone(name, given),
        }
    show(found)
    settings = {key: value for key, value in vars(given).items() if key != "alone"}
    busy = {"load_average": os.getloadavg(), "threads": torch.get_num_threads()}
    report = {
        "machine": describe(DEVICE) | busy,
        "versions": library_versions(),
        "settings": settings,
        "storages": found,
    }
    (HERE / "quantised.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if given.model == "smollm2_135m":
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        text = "\n".join(in_markdown(found))
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1], 1)[1]}", encoding="utf-8")


def of_weights(ground: Ground) -> dict[str, float]:
    """Return MiB and error of the weights of a model, and the seconds that loading it takes."""
    began = time.perf_counter()
    model, _ = build_model(ground.inputs)
    took = time.perf_counter() - began
    plain = replace(ground.inputs.config.peft, quantization=Quantization.none)
    config = replace(ground.inputs.config, peft=plain)
    whole, _ = build_model(replace(ground.inputs, config=config))
    lost = total = 0.0
    for path, module in model.named_modules():
        if is_packed(module):
            weight = whole.get_submodule(path).weight.detach().float()  # type: ignore[union-attr, operator]
            lost += float((weight - dense_weight(module).float()).square().sum())
            total += float(weight.square().sum())
    error = (lost / total) ** 0.5 if total else 0.0
    return {"weights_mib": bytes_of(model) / 2**20, "error": error, "seconds_to_load": took}


def bytes_of(model: nn.Module) -> int:
    """Return the bytes of all frozen weights, with their scales."""
    found: dict[int, int] = {}

    def count(value: Any) -> None:
        for name in getattr(value, "tensor_data_names", ()):
            count(getattr(value, name))
        state = getattr(value, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            if part is not None:
                count(part.absmax)
        if isinstance(value, torch.Tensor) and not hasattr(value, "tensor_data_names"):
            found[value.data_ptr()] = value.untyped_storage().nbytes()

    for module in model.modules():
        for value in (*module.parameters(recurse=False), *getattr(module, "meta", {}).values()):
            if not getattr(value, "requires_grad", False):
                count(value)
    return sum(found.values())


def alone(name: str, given: argparse.Namespace) -> float:
    """Return the peak of memory, GiB, of loading and training in a process of its own."""
    words = ["--alone", name, "--model", given.model, "--steps", str(given.steps)]
    words += ["--batch-size", str(given.batch_size)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} in a process of its own ended with {done.returncode}:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def ratio(values: list[float], base: list[float]) -> float:
    """Return the median of the ratios of rounds."""
    return float(np.median(np.divide(values, base)))


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the quartiles and the ends of some values."""
    names = ("min", "q1", "median", "q3", "max")
    return dict(zip(names, np.percentile(values, [0, 25, 50, 75, 100]).tolist(), strict=True))


def cells(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of a storage."""
    step, ratios = facts["seconds_per_step"]["without_padding"], facts["ratio_to_none"]
    return (
        name,
        f"{facts['weights_mib']:.0f}",
        f"{facts['error']:.4f}",
        f"{facts['seconds_to_load']:.1f}",
        f"{step['median']:.3f}",
        f"({step['q1']:.3f} to {step['q3']:.3f})",
        f"{ratios['without_padding']:.2f}",
        f"{ratios['padded']:.2f}",
        f"{facts['peak_gib']:.2f}",
    )


def show(found: dict[str, Any]) -> None:
    """Print a row for each storage."""
    table = Table(*COLUMNS)
    for name, facts in found.items():
        table.add_row(*cells(name, facts))
    OUT.print(f"{describe(DEVICE)['cpu']}, {describe(DEVICE)['accelerator']}", table)


def in_markdown(found: dict[str, Any]) -> list[str]:
    """Return the lines of the same table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(f"`{name}`", facts) for name, facts in found.items())]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
