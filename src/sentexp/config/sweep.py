"""Sweeps (`sweep` in `conf/config.yaml`) and searches (`conf/search.yaml`)."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sentexp.config.checks import check_ranges, number, seed_number
from sentexp.config.metric_names import COSTS, MEASURED
from sentexp.errors import require


class Sampler(Enum):
    """How a search proposes values: at random, in order, or from a model of the results so far (TPE, GP)."""

    tpe = "tpe"
    random = "random"
    grid = "grid"
    gp = "gp"


class Pruner(Enum):
    """What stops a run of a search early: see `sentexp.search.policies`."""

    none = "none"
    halving = "halving"
    median = "median"
    confident = "confident"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """What becomes of runs that are finished already, and what a sweep does when runs fail.

    The sweep gives `name`, `parent`, `study` and `trial` to its runs.
    """

    dry_run: bool
    quick: bool
    rerun: bool
    max_failures: int | None = number(
        ge=1, note="the sweep stops when so many runs have failed; null: it continues to its end"
    )
    choose: str | None
    choose_seeds: int | None = number(ge=1, note="so many seeds choose; null: all of them do")
    name: str | None
    parent: str | None
    study: str | None
    trial: int | None

    def __post_init__(self) -> None:
        """At least one run must be let fail before the sweep stops."""
        check_ranges(self, "sweep")
        require(
            not (self.dry_run and self.quick),
            "plan (sweep.dry_run=true) only counts, and --quick (sweep.quick=true) tries: give one of them.",
        )
        require(
            self.choose_seeds is None or self.choose is not None,
            f"sweep.choose_seeds={self.choose_seeds} are seeds that choose a setting: say which, as in "
            "sweep.choose=optim.lr.",
        )


@dataclass(kw_only=True)  # no slots: they take no name that is mangled
class SearchConfig:
    """`hydra/sweeper=optuna`: a search instead of a grid. Its keys are those of `hydra.sweeper`."""

    _target_: str
    params: dict[str, Any]
    n_trials: int = number(ge=1)
    n_jobs: int = number(ge=1)
    sampler: Sampler
    seed: int = seed_number()
    objectives: list[str]
    pruner: Pruner
    min_steps: int = number(ge=1)
    reduction_factor: int = number(ge=2)
    startup_trials: int = number(ge=0)
    confidence: float = number(gt=0, lt=1)
    storage: str | None

    def __post_init__(self) -> None:
        """Check ranges and names."""
        check_ranges(self, "hydra.sweeper")
        legal = (*(f"validation/{name}" for name in MEASURED), *COSTS)
        for name in self.objectives:
            require(
                name in legal,
                f"hydra.sweeper.objectives holds {name}, and must hold names from {', '.join(legal)}; the test split "
                "selects nothing.",
            )
        require(
            len(self.objectives) <= 1 or self.pruner is Pruner.none,
            f"hydra.sweeper.pruner={self.pruner.name} compares runs by one metric, and hydra.sweeper.objectives has "
            f"{len(self.objectives)}: use hydra.sweeper.pruner=none.",
        )
