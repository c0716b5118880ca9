"""What a plan prints: the runs, their time and memory here and elsewhere, advice. It fits 80 columns."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from rich.table import Column, Table
from rich.text import Text

from sentexp.plan.run_states import Costs, Planned, Standing
from sentexp.plan.timing import EVALUATION_BATCHES, TRAINING_BATCHES
from sentexp.system.console import OUT, duration, say
from sentexp.system.device import describe

LISTED = 3
"""Names of runs that share a sentence."""


def print_runs(runs: list[Planned]) -> None:
    """Print the state of each run, what it trains and how much it reads."""
    counts = {standing: sum(run.standing is standing for run in runs) for standing in Standing}
    counted = ", ".join(f"{count} {standing.value}" for standing, count in counts.items() if count)
    table = _table(
        f"plan: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {counted}",
        "run", "state", "parameters trained", "tokens", "padding", "evaluated",
    )  # fmt: skip
    for run in runs:
        table.add_row(Text(run.name), run.standing.value, *_work(run))
    OUT.print(table)
    notes: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.result is not None and run.standing is Standing.finished:
            first = run.result.kind.headline
            value, seconds = run.result.metrics[f"test/{first}"], run.result.metrics["seconds"]
            say(f"{run.name}: finished with test {first} {value:.4f} in {duration(seconds)}")
        elif run.note:
            notes[run.note].append(run.name)
    for note, names in notes.items():
        say(f"{_those(names)}: {note}")


def print_times(runs: list[Planned], baselines: dict[str, float]) -> None:
    """Print time and peak memory of what is left, on this machine, and how they were found."""
    left = {run.name: run.costs for run in runs if run.is_left and run.costs is not None}
    columns = ("training", "evaluation", "in all", "peak GiB")
    table = _table(f"estimate for this machine ({_here(left.values())})", "run", *columns)
    spent: defaultdict[str, float] = defaultdict(float)
    for name, costs in left.items():
        if costs.measured is not None:
            training, evaluation = costs.training_seconds(costs.measured), costs.evaluation_seconds(costs.measured)
            spent["training"] += training
            spent["evaluation"] += evaluation
            times = map(duration, (training, evaluation, training + evaluation))
            table.add_row(Text(name), *times, f"{costs.measured.peak_gib:.1f}")
    if table.rows:
        OUT.print(table)
    untimed: dict[str, list[str]] = defaultdict(list)
    for name, costs in left.items():
        if costs.measured is None:
            untimed[costs.unmeasured].append(name)
    for reason, names in untimed.items():
        say(f"{_those(names)} {'was' if len(names) == 1 else 'were'} not timed here: {reason}")
    kinds = {id(run.costs.measured): run.costs.measured for run in runs if run.costs and run.costs.measured}
    spent["baselines"] = sum(baselines.values())
    spent["loading"] = sum(kind.loading for kind in kinds.values())
    if kinds:
        _say_in_all(spent, len(kinds))


def _those(names: list[str]) -> str:
    """Return one run by its name, several by their number and the first of them."""
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    return names[0] if len(names) == 1 else f"{len(names)} runs ({listed})"


def _here(left: Iterable[Costs]) -> str:
    """Return what this machine is."""
    device = next((costs.inputs.device for costs in left if costs.inputs is not None), torch.device("cpu"))
    facts = describe(device)
    return facts["accelerator"] if device.type == "cuda" else f"{facts['cpu']}, {facts['cpu_cores']} cores"


def _say_in_all(spent: Mapping[str, float], kinds: int) -> None:
    """Print how long all runs take one after the other, and what the estimate is based on."""
    counted = ", ".join(f"{name} {duration(seconds)}" for name, seconds in spent.items() if seconds)
    say(f"One after the other: about {duration(sum(spent.values()))} ({counted}).")
    say(
        f"Measured: up to {TRAINING_BATCHES} training and {EVALUATION_BATCHES} evaluation batches of each of {kinds} "
        f"{'kind' if kinds == 1 else 'kinds'} of run, after the largest, whose memory is the peak; a batch takes "
        "a + b x tokens. Not counted: early stopping, TF-IDF, recording, pictures."
    )


@dataclass(kw_only=True, slots=True)
class Fused:
    """Runs that train together, and how many times as fast (None: not measured); or the reason why these do not."""

    names: list[str]
    gain: float | None = None
    reason: str = ""


def print_fusion(fusions: Iterable[Fused]) -> None:
    """Print which runs train together, and why others do not."""
    for fused in fusions:
        names = ", ".join(fused.names)
        if fused.reason:
            say(f"One after the other: {names} ({fused.reason}).")
            continue
        gain = "" if fused.gain is None else f": about {fused.gain:.1f} times as fast as one after the other, measured"
        say(f"{len(fused.names)} runs train together over one backbone{gain} ({names}).")


def print_advice(sentences: Iterable[str]) -> None:
    """Print advice, a line for each."""
    for sentence in sentences:
        say(f"Advice: {sentence}")


def _work(run: Planned) -> list[str]:
    """Return parameters, tokens, padding and evaluated tokens as people read them."""
    counted = run.costs.arithmetic.parameters if run.costs else run.result.parameters if run.result else None
    parameters = _trained(counted.trainable_total, counted.total) if counted else ""
    if run.costs is None or not run.is_left:
        return [parameters, "", "", ""]
    work = run.costs.work
    padding = f"{max(0.0, 1 - work.train.tokens / work.train.computed.sum()):.1%}" if work.micro_batches else ""
    evaluated = work.validation.tokens * work.evaluations + work.test.tokens
    return [parameters, f"{round(work.train.tokens * work.epochs):,}", padding, f"{evaluated:,}"]


def _trained(trained: int, total: int) -> str:
    return f"{trained:,} ({trained / total:.2%})"


def _table(title: str, first: str, *rest: str) -> Table:
    table = Table(Column(first, no_wrap=True), *rest, title=title)
    table.title_justify = "left"
    return table
