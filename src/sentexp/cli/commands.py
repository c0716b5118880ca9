"""The commands: their names, where their keys are, and what runs them."""

import math
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import Config, SearchConfig, TrackingBackend
from sentexp.distributed import launch
from sentexp.errors import require
from sentexp.run.early_look import look_early

if TYPE_CHECKING:
    from sentexp.sweeps.sweep_dir import Outcome


@dataclass(kw_only=True, slots=True, frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        name: the first word of the command line.
        module: holds a function of this name, which takes the configuration; it is imported when the command runs.
        has_own_keys: whether `conf/<name>.yaml` holds its keys; the others take the configuration of a run.
        override: added to the command line.
        reads_data: whether it begins with the data and the model of a run.
        interrupted: what becomes of the command when it is interrupted.
    """

    name: str
    module: str
    has_own_keys: bool = False
    override: str | None = None
    reads_data: bool = False
    interrupted: str = ""

    @property
    def root(self) -> str:
        """The name of the file in `conf/` that holds the keys."""
        return self.name if self.has_own_keys else "config"

    def run(self, config: Any, *arguments: str) -> "float | Outcome":
        """Run the command; return the objective of a run, what became of a run of a sweep, or NaN."""
        from sentexp.system.console import waiting
        from sentexp.system.garbage import nothing_collected

        if self.reads_data and config.sweep.name is None:  # else the sweeper has looked
            look_early([config])
        with waiting(f"Starting {self.name}"), nothing_collected():
            function = getattr(import_module(self.module), self.name)
        if self.name != "train":
            launch.require_one(f"sentexp {self.name}")
        result: float | Outcome | None = function(config, *arguments)
        return result if self.name == "train" and result is not None else math.nan


EACH = "hydra/sweeper=each"
"""No sweep of runs that train: the command is called for each combination."""
COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="train",
            module="sentexp.cli.commands",
            reads_data=True,
            interrupted=": the same command resumes from its last checkpoint, or starts again without one",
        ),
        Command(name="plan", module="sentexp.cli.commands", override="sweep.dry_run=true", reads_data=True),
        Command(name="audit", module="sentexp.run.audit", override=EACH, reads_data=True),
        Command(name="prepare", module="sentexp.run.prepare", override=EACH, reads_data=True),
        Command(name="runs", module="sentexp.cli.list_runs", override=EACH),
        Command(name="models", module="sentexp.cli.list_models", override=EACH),
        Command(name="compare", module="sentexp.compare.command", has_own_keys=True),
        Command(
            name="predict",
            module="sentexp.inference.predict",
            has_own_keys=True,
            interrupted=": the same command resumes, from a file to a file",
        ),
        Command(name="evaluate", module="sentexp.inference.evaluate", has_own_keys=True),
        Command(name="export", module="sentexp.export.command", has_own_keys=True),
        Command(name="push", module="sentexp.inference.push", has_own_keys=True),
        Command(name="register", module="sentexp.serving.register", has_own_keys=True),
        Command(name="serve", module="sentexp.serving.serve", has_own_keys=True),
        Command(name="ui", module="sentexp.serving.ui", has_own_keys=True),
    )
}


def train(config: Config) -> "float | Outcome | None":
    """Train a run, or a run of a sweep, or plan it where `sweep.dry_run` says so."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    search = _search()
    if Path(hydra.runtime.cwd).is_dir() and not hydra.job.chdir:  # a worker of a cluster was started elsewhere,
        os.chdir(hydra.runtime.cwd)  # perhaps on a machine that does not have this folder
    if config.sweep.dry_run:
        plan(config)
        return None
    if config.sweep.quick:
        quick(config)
        return None
    _freeze_imports(config)
    if config.sweep.name is None:
        from sentexp.run.train import train as train_run

        return train_run(config).objective
    from sentexp.search.policies import judge_of
    from sentexp.sweeps.job import run_job
    from sentexp.sweeps.sweep_dir import SweepFolder

    folder = Path(hydra.runtime.output_dir)
    return run_job(config, SweepFolder(folder.parent), int(folder.name), judge_of(config, search))


def plan(config: Config) -> None:
    """Print what a run would do and cost."""
    from sentexp.system.console import waiting
    from sentexp.tracking.provenance import planned_words

    with waiting("Loading the libraries"):
        from sentexp.plan.command import plan as plan_runs

    launch.require_one("sentexp plan")
    _search()
    plan_runs([config], planned_words())


def quick(config: Config) -> None:
    """Try a few steps of a run, and all that follows them."""
    from sentexp.system.console import waiting

    with waiting("Loading the libraries"):
        from sentexp.quick.command import quick as try_runs

    launch.require_one("sentexp --quick")
    try_runs([config])


def _search() -> SearchConfig | None:
    """Return the search that this run is a trial of, if it is one.

    Raises:
        UserError: a search without --multirun.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    sweeper = OmegaConf.to_object(hydra.sweeper)
    search = sweeper if isinstance(sweeper, SearchConfig) else None
    require(
        search is None or hydra.mode is RunMode.MULTIRUN,
        "hydra/sweeper=optuna searches with --multirun: add it, or leave the sweeper out.",
    )
    return search


def _freeze_imports(config: Config) -> None:
    """Import what the run needs, and let the garbage collector leave it alone."""
    from sentexp.system.console import silence_libraries, waiting
    from sentexp.system.garbage import freeze_imports

    tracking = ["mlflow"] if config.tracking.backend is TrackingBackend.mlflow else []
    silence_libraries()
    with waiting("Loading the libraries"):
        freeze_imports("sentexp.run.train", *tracking)
