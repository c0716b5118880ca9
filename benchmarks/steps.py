"""What a step of training costs once all of its shapes are recorded, and which kernels it is made of.

    python benchmarks/steps.py                                    # LoRA on Llama 3.2 1B's shape; a minute on an H100
    python benchmarks/steps.py --model llama2-7b --peft qlora --steps 96
    python benchmarks/steps.py --model tiny --steps 24            # that the script runs, on any machine

A run records each shape of its batches when it meets it (`trainer.cuda_graphs`), so that its first steps say nothing
about the later ones. Here the first half of the steps is left out. The clock starts and stops when the GPU is done; how
long the loop itself took to give all work to the GPU is `host`. The last three steps are profiled, kernel by kernel.
Trainer and PEFT train beside it for `--trainer-steps` steps, as an expert tunes them (see arms.py).

Models, rows and options are those of training.py. Writes steps_<model>_<peft>_<task>_<device>.json beside this.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
import training
from arms import Ground, Sentexp, arms, take, tuned
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from sentexp.system.device import describe
from sentexp.system.memory import peak_memory_gib
from sentexp.tracking.provenance import library_versions

OUT = Console(width=120)
PROFILED, SHOWN = 3, 24
ON_GPU = training.DEVICE.type == "cuda"


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(training.SHAPES), default="llama3.2-1b")
    parser.add_argument("--peft", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--task", choices=training.TASKS, default="seq_cls")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rows", type=int, default=512, help="that are evaluated, twice (default: %(default)s)")
    parser.add_argument("--trainer-steps", type=int, default=24, help="0: leave Trainer out (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=training.SST2 if training.SST2.is_dir() else None)
    given = parser.parse_args()
    training.transformers.logging.set_verbosity_error()
    training.datasets.disable_progress_bars()
    models = Path(gettempdir()) / "models"
    models.mkdir(exist_ok=True)
    setting = training.Setting(task=given.task, model=given.model, peft=given.peft, batch_size=given.batch_size)
    ground, _ = training.prepared(setting, given, models)
    OUT.print(f"{setting}, {ground.inputs.precision.name}, on a {training.DEVICE.type}")
    facts = measure(ground, given)
    if given.trainer_steps:
        facts["trainer"] = beside(ground, given)
    report = {"machine": describe(training.DEVICE), "versions": library_versions(), **vars(setting), **facts}
    name = f"steps_{given.model}_{given.peft}_{given.task}_{training.DEVICE.type}.json"
    (training.HERE / name).write_text(json.dumps(report, indent=2) + "\n")


class Steady(L.Callback):
    """Times the steps of the second half, and profiles the last ones."""

    def __init__(self, steps: int) -> None:
        self.first, self.last, self.facts = steps // 2, steps - PROFILED - 1, dict[str, Any]()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
        self.profiler = profile(activities=activities)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Read the clock."""
        del trainer, outputs, batch
        if batch_idx == self.first:
            wait()
            self.began = time.perf_counter()
        if batch_idx == self.last:
            host = time.perf_counter() - self.began
            wait()
            count = self.last - self.first
            step = (time.perf_counter() - self.began) / count
            self.facts |= {"ms_per_step": step * 1e3, "host_ms_per_step": host / count * 1e3}
            self.facts["graphs"] = module.training_graphs.summary if module.training_graphs else ""
            self.profiler.start()
        if batch_idx == self.last + PROFILED:
            wait()
            self.profiler.stop()


def measure(ground: Ground, given: argparse.Namespace) -> dict[str, Any]:
    """Return what a steady step, an evaluation and loading take."""
    arm, rows = Sentexp(ground=ground), ground.draw(1, given.steps * given.batch_size, given.rows)
    began = time.perf_counter()
    module, data = arm.load()
    wait()
    loading = time.perf_counter() - began
    steady = Steady(given.steps)
    whole = arm.run("train", rows, module, data, steady)
    facts = steady.facts | {"seconds_of_loading": loading, "ms_per_step_with_recording": whole / given.steps * 1e3}
    facts["peak_gib"] = peak_memory_gib(training.DEVICE)
    facts["rows_per_second_evaluated"] = [given.rows / arm.run("test", rows, module, data) for _ in range(2)]
    facts |= kernels(steady.profiler)
    for key, value in facts.items():
        OUT.print(f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}")
    return facts


def kernels(profiler: profile) -> dict[str, Any]:
    """Print the longest kernels of a step; return their milliseconds in all, and how many there are."""
    own = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if not ON_GPU or is_kernel(event)]
    events.sort(key=lambda event: getattr(event, own), reverse=True)
    table = Table("kernel", "ms a step", "times")
    for event in events[:SHOWN]:
        milliseconds = getattr(event, own) / PROFILED / 1e3
        table.add_row(event.key[:90], f"{milliseconds:.3f}", f"{event.count / PROFILED:.0f}")
    OUT.print(table)
    milliseconds = sum(getattr(event, own) for event in events) / PROFILED / 1e3
    return {"ms_of_kernels": milliseconds, "kernels_per_step": sum(event.count for event in events) / PROFILED}


def is_kernel(event: Any) -> bool:
    """Tell whether an event is work of the GPU, and no range that others name."""
    return event.device_type is not torch.autograd.DeviceType.CPU and not event.key.startswith("Optimizer.")


def beside(ground: Ground, given: argparse.Namespace) -> dict[str, float]:
    """Return what Trainer and PEFT take."""
    rows = ground.draw(1, given.trainer_steps * given.batch_size, given.rows)
    name = tuned(given.batch_size)
    turn = take(arms(ground, len(rows.train))[name], rows, training.DEVICE)
    assert turn.test is not None
    facts = {
        "ms_per_step": turn.train / given.trainer_steps * 1e3,
        "rows_per_second_evaluated": given.rows / turn.test,
        "peak_gib": turn.peak_gib,
    }
    OUT.print(f"{name}: {facts}")
    return facts


def wait() -> None:
    """Let the GPU finish."""
    if ON_GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
