"""The folder of a sweep, `multirun/<date>/<time>`: where its runs, in whatever process, write how they ended."""

import itertools
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sentexp.config.metric_names import is_better_higher
from sentexp.system.atomic_write import write_atomic
from sentexp.system.json_files import read_json
from sentexp.tracking.provenance import command

SWEEP, OUTCOME, LOG, CONFIG, STOP = "sweep.json", "outcome.json", "run.log", "config.yaml", "stop"

ATTEMPTS = 2
"""How often a run is started that takes its process down with it, before it counts as killed."""


class State(StrEnum):
    """How a run of a sweep ended."""

    finished = "finished"
    pruned = "pruned"
    failed = "failed"
    killed = "killed"
    not_started = "not started"


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of a run of a sweep; `error` says why it has no result. `earlier`: it had ended before this start."""

    name: str
    state: State
    identity: str | None = None
    run_id: str | None = None
    objective: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    earlier: bool = False

    @classmethod
    def load(cls, text: str) -> "Outcome":
        """Return the outcome that this JSON holds."""
        facts = json.loads(text)
        return cls(**facts | {"state": State(facts["state"])})


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a sweep is: ended runs, of how many, the best finished one, seconds left (NaN: not known yet)."""

    ended: int
    total: int
    failed: int
    best: Outcome | None
    seconds_left: float


class SweepFolder:
    """`multirun/<date>/<time>`, with a folder for each run by its number.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, total: int, monitor: str, max_failures: int | None) -> None:
        """Make the folder, under another name where another sweep has taken this one; note what the runs share."""
        facts: dict[str, Any] = {"command": command(), "total": total, "monitor": monitor}
        facts |= {"max_failures": max_failures, "started": time.time()}
        wanted = self.path
        for number in itertools.count(2):
            try:
                self.path.mkdir(parents=True)
                break
            except FileExistsError:
                self.path = wanted.with_name(f"{wanted.name}-{number}")
        (self.path / SWEEP).write_text(json.dumps(facts, indent=2) + "\n")

    def is_here(self) -> bool:
        """Tell whether this machine shares the folder with the one that began the sweep."""
        return (self.path / SWEEP).is_file()

    def of(self, number: int) -> Path:
        """Return the folder of a run."""
        return self.path / str(number)

    def write(self, number: int, outcome: Outcome) -> None:
        """Note how a run ended; too many failures stop the runs that have not started."""
        folder = self.of(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / OUTCOME, json.dumps(asdict(outcome), indent=2) + "\n")
        most = self._facts()["max_failures"]
        if most is not None and sum(map(has_failed, self.outcomes().values())) >= most:
            (self.path / STOP).touch()

    def outcomes(self) -> dict[int, Outcome]:
        """Return the runs that have ended, by number."""
        files = {int(file.parent.name): file for file in self.path.glob(f"*/{OUTCOME}")}
        return {number: Outcome.load(files[number].read_text()) for number in sorted(files)}

    def is_stopped(self) -> bool:
        """Tell whether no more runs are to start."""
        return (self.path / STOP).exists()

    def progress(self) -> Progress:
        """Return how far the sweep is."""
        facts, ended = self._facts(), list(self.outcomes().values())
        total = facts["total"]
        return Progress(
            ended=len(ended),
            total=total,
            failed=sum(map(has_failed, ended)),
            best=best_of(ended, facts["monitor"]),
            seconds_left=self._seconds_left(total - len(ended), ended, facts["started"]),
        )

    def _seconds_left(self, left: int, ended: list[Outcome], started: float) -> float:
        """Return how long the rest will take; NaN before a run has ended.

        Runs that are under way, and began together in a fused sweep, have a part of their time behind them.
        """
        now = time.time()
        done = [outcome for outcome in ended if not outcome.earlier]
        if not done:
            return math.nan
        begun = {file.parent: now - file.stat().st_mtime for file in self.path.glob(f"*/{CONFIG}")}
        ages = [age for folder, age in begun.items() if not (folder / OUTCOME).is_file()]
        each = [outcome.metrics["seconds"] for outcome in done if "seconds" in outcome.metrics]
        if not ages or not each:
            return (now - started) / len(done) * left
        usual = sum(each) / len(each)
        rests = [max(0.0, usual - age) for age in ages]
        waiting = max(0, left - len(ages))
        at_once = len(ages) + (1 if waiting else 0)  # the place of the run that has just ended
        return max(*rests, (sum(rests) + waiting * usual) / at_once)

    def _facts(self) -> dict[str, Any]:
        return read_json(self.path / SWEEP)  # type: ignore[no-any-return]


def has_failed(outcome: Outcome) -> bool:
    """Tell whether a run ended badly."""
    return outcome.state in (State.failed, State.killed)


def best_of(outcomes: Iterable[Outcome], monitor: str) -> Outcome | None:
    """Return the finished run with the best objective, the first of equals; None where there is none."""
    sign = 1 if is_better_higher(monitor) else -1
    finished = [outcome for outcome in outcomes if outcome.state is State.finished and math.isfinite(outcome.objective)]
    return max(finished, key=lambda outcome: sign * outcome.objective, default=None)
