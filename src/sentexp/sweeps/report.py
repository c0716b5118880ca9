"""What a sweep prints: its beginning, a line for every run that ends, the table of all."""

import math
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from sentexp.config import Config
from sentexp.config.target_kind import kind_of_run
from sentexp.sweeps.sweep_dir import Outcome, Progress, State, best_of
from sentexp.system.console import OUT, duration, say
from sentexp.tracking.next_steps import override, place_words, predict_example, sentexp_command

LONGEST_NAME = 36
OF_ORDERED = ("accuracy", "mae", "qwk")


def print_beginning(what: str, total: int, finished: int, interrupted: int, run_id: str | None, folder: Path) -> None:
    """Print what kind of sweep begins, how many runs it has, and how many of them need nothing more."""
    where = f", MLflow run {run_id}" if run_id else ""
    say(f"{what} of {total} {'run' if total == 1 else 'runs'} in {folder}{where}")
    to_resume = f", {interrupted} to resume" if interrupted else ""
    say(f"{finished} finished before{to_resume}, {total - finished - interrupted} to do")


def print_progress(outcome: Outcome, progress: Progress, monitor: str) -> None:
    """Print a line: which run has ended and how, the best so far, and how long the rest will take."""
    ending = outcome.state.value
    if outcome.state is State.finished:
        ending = f"{monitor} {outcome.objective:.4f}, {outcome.metrics['seconds']:.0f} s"
    parts = [f"{progress.ended}/{progress.total}", outcome.name, ending]
    if progress.best is not None:
        parts.append(f"best {progress.best.name} {progress.best.objective:.4f}")
    if progress.ended < progress.total and math.isfinite(progress.seconds_left):
        parts.append(f"about {duration(progress.seconds_left)} left")
    OUT.print(Text(" | ".join(parts)))


def print_outcomes(outcomes: list[Outcome], monitor: str) -> None:
    """Print the table of all runs, and below it why runs failed."""
    metrics = _shown({key for outcome in outcomes for key in outcome.metrics})
    numbers = [monitor.replace("/", "\n"), *(f"test\n{name.replace('_', ' ')}" for name in metrics), "seconds"]
    table = Table(
        Column("run", max_width=LONGEST_NAME, overflow="fold"),
        *(Column(name, no_wrap=True) for name in ("state", *numbers)),
        title="sweep",
    )
    table.title_justify = "left"
    best = best_of(outcomes, monitor)
    for outcome in outcomes:
        values = [outcome.objective, *(outcome.metrics.get(f"test/{name}", math.nan) for name in metrics)]
        seconds = outcome.metrics.get("seconds")
        table.add_row(
            Text(outcome.name),
            outcome.state.value,
            *("" if math.isnan(value) else f"{value:.4f}" for value in values),
            "" if seconds is None else f"{seconds:.0f}",
            style="bold" if best is not None and outcome.name == best.name else "",
        )
    OUT.print(table)
    for outcome in outcomes:
        if outcome.error:
            say(f"{outcome.name}: {outcome.error}")
    if best is not None:
        say(f"Best {monitor}: {best.name} ({best.objective:.4f}); the test columns selected nothing.")


def _shown(found: set[str]) -> tuple[str, ...]:
    """Return the test metrics that have columns, which are others where classes are ordered."""
    return OF_ORDERED if "test/qwk" in found else kind_of_run(found).short


def next_commands(outcomes: list[Outcome], config: Config, compared: str | None) -> list[str]:
    """Return how a sweep is looked at and its best run used.

    Args:
        outcomes: of all runs.
        config: of one of them.
        compared: the sweep's MLflow run, where its runs can be compared.
    """
    best = best_of(outcomes, config.trainer.monitor)
    place = place_words(config.tracking, config.output_dir)
    commands = []
    if compared is not None:
        chosen = [] if config.sweep.choose is None else [override("choose", config.sweep.choose)]
        commands.append(sentexp_command("compare", f"sweep={compared[:8]}", *chosen, *place_words(config.tracking)))
    if best is not None and best.identity is not None:
        run = f"run={best.identity[:8]}"
        if best.run_id is not None:
            commands.append(sentexp_command("register", run, override("name", config.data.title), *place))
        commands += predict_example(run, place, getattr(config.data, "text_pair", None) is not None)
    return commands
