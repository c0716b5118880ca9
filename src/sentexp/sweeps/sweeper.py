"""A sweep of runs that have identities, under one MLflow run.

Finished runs are skipped, interrupted ones resume, failed ones are tried again; a failure does not stop the others.
"""

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sentexp.config import CompareConfig, Config, from_conf, target_kind
from sentexp.config.explain import COMPOSITION_ERRORS, explain, explain_misfit
from sentexp.config.metric_names import ORDERED_METRICS
from sentexp.distributed.launch import require_one
from sentexp.errors import UserError, complain
from sentexp.run.early_look import look_early
from sentexp.sweeps.cluster import ClusterLauncher
from sentexp.sweeps.launch import (
    Job,
    check_launcher,
    close_launcher,
    collect,
    fit_to_cluster,
    launch,
    once_each,
    require_strategy,
)
from sentexp.sweeps.plain_values import with_values
from sentexp.tracking.next_steps import quoted

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

    from sentexp.sweeps.sweep_dir import Outcome, SweepFolder
    from sentexp.tracking.run_logger import RunLogger


class SweepFailed(Exception):
    """Runs of a sweep have failed; the rest is finished."""


class RunSweeper(Sweeper):
    """What hydra's sweepers of sentexp share: they compose runs, skip, launch and collect them.

    Args:
        params: overrides of a preset, swept or not; those of the command line replace them.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params or {}
        self.config: DictConfig
        self.launcher: Launcher
        self.hydra_context: HydraContext

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: DictConfig) -> None:
        """Keep hydra's context, and make the launcher that the configuration names."""
        from hydra.core.plugins import Plugins

        require_one("--multirun")
        self.hydra_context, self.config = hydra_context, config
        fit_to_cluster(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def load_libraries(self, jobs: Sequence[Job]) -> None:
        """Import what runs need, which takes seconds, unless none of them can begin."""
        from sentexp.system.console import waiting
        from sentexp.system.garbage import nothing_collected

        if not isinstance(self.launcher, ClusterLauncher):  # whose machines may have the files
            look_early(job.config for job in jobs)
        with waiting("Loading the libraries"), nothing_collected():
            import_module("sentexp.run.train")

    def plan(self, jobs: list[Job]) -> None:
        """Print what would be done."""
        self.load_libraries(jobs)
        from sentexp.plan.command import plan
        from sentexp.tracking.provenance import planned_words

        plan([job.config for job in jobs], planned_words())

    def quick(self, jobs: list[Job]) -> None:
        """Try a few steps of each kind of run."""
        self.load_libraries(jobs)
        from sentexp.quick.command import quick

        quick([job.config for job in jobs])

    def with_preset(self, arguments: list[str]) -> list[str]:
        """Return the overrides of a preset, except those whose keys are on the command line, and these."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = {override.key_or_group for override in parser.parse_overrides(arguments)}
        return [*(f"{key}={value}" for key, value in self.params.items() if key not in given), *arguments]

    def begin(self, total: int, config: Config) -> "SweepFolder":
        """Make the sweep's folder.

        Raises:
            UserError: the launcher would start more processes than there are GPUs.
        """
        from sentexp.sweeps.sweep_dir import SweepFolder

        check_launcher(self.launcher, config)
        folder = SweepFolder(Path(self.config.hydra.sweep.dir))
        folder.begin(total, config.trainer.monitor, config.sweep.max_failures)
        return folder

    def finish(
        self, jobs: list[Job], earlier: "dict[int, Outcome]", parent: "RunLogger", folder: "SweepFolder"
    ) -> "list[Outcome]":
        """Run the jobs that were not finished earlier; return the outcomes of all."""
        earlier = {job.number: earlier[job.number] for job in jobs if job.number in earlier}
        self._adopt(parent, earlier, jobs)
        for number, outcome in earlier.items():
            folder.write(number, outcome)
        launch(self.launcher, [job for job in once_each(jobs) if job.number not in earlier], folder)
        return collect(jobs, folder)

    def conclude(self, config: Config, parent: "RunLogger", folder: "SweepFolder") -> "list[Outcome]":
        """Record and print how the runs ended, and return it."""
        from sentexp.run.cache import clear_cache
        from sentexp.sweeps.report import next_commands, print_outcomes
        from sentexp.sweeps.sweep_dir import has_failed
        from sentexp.tracking.next_steps import say_next, say_recorded

        close_launcher(self.launcher)
        outcomes = list(folder.outcomes().values())
        (folder.path / "runs.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
        parent.log_files(folder.path / "runs.json")
        clear_cache()
        print_outcomes(outcomes, config.trainer.monitor)
        compares = _compare(config, parent, folder, outcomes)
        if parent.run_id is not None:
            say_recorded(parent.run_id, config.tracking)
        say_next(next_commands(outcomes, config, parent.run_id if compares else None))
        failed = [outcome.name for outcome in outcomes if has_failed(outcome)]
        missing = folder.progress().total - len(outcomes)
        left = missing + sum(outcome.state.value == "not started" for outcome in outcomes)
        if failed or left:
            why = " (sweep.max_failures)" if folder.is_stopped() else ""
            stopped = f", and {left} were not started{why}" if left else ""
            raise SweepFailed(f"{len(failed)} of {len(outcomes)} runs failed: {'; '.join(failed)}{stopped}.")
        return outcomes

    def compose(self, runs: Sequence[Sequence[str]], names: Sequence[str], first: int = 0) -> list[Job]:
        """Return the jobs, numbered from `first`, each with a configuration that is right in itself."""
        jobs, wrong = [], []
        base = self.config, list(self.config.hydra.overrides.task)
        for number, (run, name) in enumerate(zip(runs, names, strict=True), first):
            overrides = [*run, f"sweep.name={quoted(name)}"]
            composed = with_values(*base, overrides)
            if composed is None:
                try:
                    composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
                except COMPOSITION_ERRORS as error:
                    raise UserError(explain([*sys.argv[1:], *run], error)) from error
                base = copy.deepcopy(composed), overrides
            if composed.hydra.sweeper.params != self.config.hydra.sweeper.params:
                raise UserError(f"{name}: that preset is a sweep of its own: sweep over its keys, or give it alone.")
            with open_dict(composed):
                del composed["hydra"]
            try:
                config = OmegaConf.to_object(composed)
            except UserError as error:
                wrong.append(str(error))
                continue
            except (OmegaConfBaseException, AttributeError, TypeError) as error:
                raise UserError(explain_misfit(error)) from error
            assert isinstance(config, Config)
            require_strategy(self.launcher, config, run)
            jobs.append(Job(number=number, overrides=overrides, config=config))
        if wrong:
            raise UserError(" ".join(dict.fromkeys(wrong)))
        return jobs

    def find_results(self, jobs: list[Job]) -> "dict[int, Outcome]":
        """Give the jobs their identities, and return the outcomes of those that are finished."""
        from sentexp.run.inputs import resolve_inputs, run_identity
        from sentexp.run.plotting import plot_finished
        from sentexp.run.resolve import resolve_config
        from sentexp.run.result import find_result, lacks_baselines
        from sentexp.sweeps.job import outcome_of

        earlier = {}
        for job in jobs:
            config = resolve_config(job.config)
            try:
                job.identity = run_identity(resolve_inputs(config))
            except UserError:
                continue  # the run will say so, and leave a record of it
            result = None if config.sweep.rerun else find_result(config, job.identity)
            if result is not None and not lacks_baselines(result, config):
                plot_finished(result, config)
                earlier[job.number] = outcome_of(result, job.config, earlier=True)
        return earlier

    def open_parent(
        self, kind: str, config: Config, identity: str, axes: Mapping[str, str], words: list[str]
    ) -> "RunLogger":
        """Return the sweep's own MLflow run: that of an earlier start of the same sweep, or a new one.

        Of processes on one machine that start the same sweep at once the first makes it.
        """
        from filelock import FileLock

        from sentexp.system.package_files import cache_dir
        from sentexp.tracking.provenance import command, git_state, mask_uri
        from sentexp.tracking.run_logger import open_run_logger
        from sentexp.tracking.store import find_run

        tracking, locks = config.tracking, cache_dir() / "sweeps"
        locks.mkdir(parents=True, exist_ok=True)
        title = " ".join([kind, *(f"{key.rpartition('.')[2]}={values}" for key, values in axes.items())])
        tags = {"sweep.identity": identity, "command": command(), "mlflow.source.name": "sentexp", **git_state()}
        with FileLock(locks / f"{identity}.lock"):
            begun = find_run(tracking, "sweep.identity", identity)
            run_id = None if begun is None else begun.info.run_id
            parent = open_run_logger(tracking, tracking.run_name or title[:250], run_id, tags)
        given = dict(mask_uri(word).split("=", 1) for word in words if "=" in word)
        parent.log_params(given | dict(axes))
        return parent

    def _adopt(self, parent: "RunLogger", earlier: "dict[int, Outcome]", jobs: list[Job]) -> None:
        """Link finished runs that belong to no sweep to this one, and give the jobs their parent."""
        from sentexp.tracking.store import PARENT, open_store

        if parent.run_id is None:
            return
        store = open_store(jobs[0].config.tracking)
        for outcome in earlier.values():
            run = None if outcome.run_id is None else store.get_run(outcome.run_id)
            if run is not None and PARENT not in run.data.tags:
                store.client.set_tag(outcome.run_id, PARENT, parent.run_id)
        for job in jobs:
            job.overrides.append(f"sweep.parent={parent.run_id}")
            job.config = replace(job.config, sweep=replace(job.config.sweep, parent=parent.run_id))


def _compare(config: Config, parent: "RunLogger", folder: "SweepFolder", outcomes: "list[Outcome]") -> bool:
    """Write the report of a sweep that has brought something new, and say what it shows; no fault there fails it.

    Return whether there is something to compare.
    """
    from sentexp.compare.command import REPORT, analyse, write
    from sentexp.sweeps.sweep_dir import State
    from sentexp.system.console import say, waiting
    from sentexp.system.stopwatch import TIMES

    finished = [outcome for outcome in outcomes if outcome.state is State.finished]
    if parent.run_id is None or not finished:
        return False
    if all(outcome.earlier for outcome in finished):
        return True
    metric = config.trainer.monitor.rpartition("/")[2]
    kind = target_kind(config.task)
    if metric not in (*kind.compared, *ORDERED_METRICS):  # the loss of scores, for instance
        metric = kind.headline
    asked = from_conf(
        CompareConfig, tracking=config.tracking, sweep=parent.run_id, metric=metric, choose=config.sweep.choose
    )
    try:
        with TIMES.part("report"), waiting("Comparing the runs"):
            analysis = analyse(asked)
            write(analysis, asked, folder.path)
    except UserError as error:
        say(f"The runs are not compared: {error}")
        return False
    except Exception as error:
        complain(
            f"The report failed ({type(error).__name__}: {error}); the runs are complete, and compare tries it again."
        )
        return True
    for note in analysis.board.notes:
        say(note)
    say(f"Report: {folder.path / REPORT}", folder.path / REPORT)
    return True
