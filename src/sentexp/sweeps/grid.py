"""`--multirun`: every combination of the values, each a run with an identity, under one MLflow run of the sweep.

What is finished is not run again, what was interrupted goes on, what failed is tried again; a failure stays alone.
Any launcher of hydra's runs them; see `run_job` for what happens in its processes.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sentexp.config import Config, Strategy, TrackingBackend
from sentexp.diagnosis import COMPOSITION_ERRORS, explain, explain_failure
from sentexp.errors import UserError, complain, require
from sentexp.processes import require_one, torchrun_command
from sentexp.sweeps.names import run_names

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

    from sentexp.sweeps.folder import Outcome, SweepFolder
    from sentexp.tracking.store import Record

ATTEMPTS = 2
"""How often a run is started that takes its launcher down with it, before it counts as killed."""


class SweepFailed(Exception):
    """Runs of a sweep have failed; the rest is finished."""


@dataclass(kw_only=True, slots=True)
class Job:
    """A run of the sweep: its number, overrides, configuration, and identity where it could be found."""

    number: int
    overrides: list[str]
    config: Config
    identity: str | None = None


class GridSweeper(Sweeper):
    """Hydra's sweeper of sentexp.

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
        _fit_to_cluster(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def is_in_process(self) -> bool:
        """Tell whether the launcher is hydra's own, which runs one job after the other in this process.

        By name: hydra loads the modules of its plugins anew when it looks for them, so that a class can be there twice.
        """
        return type(self.launcher).__name__ == BasicLauncher.__name__

    def sweep(self, arguments: list[str]) -> "list[Outcome]":
        """Run every combination and return what became of each, in order.

        Raises:
            UserError: a value that is out of range in any of the runs, or that needs several processes for each:
                nothing has been started.
            SweepFailed: some of the runs failed; the others are finished.
        """
        words = self.with_preset(arguments)
        overrides = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(words)
        for override in overrides:
            require(
                not override.is_interval_sweep(),
                f"{override.input_line} has no end of values: give some, such as {override.key_or_group}=1,2,3, or "
                "search it with hydra/sweeper=optuna.",
            )
        (runs,) = BasicSweeper.split_arguments(overrides, None)
        jobs = self.compose(runs, run_names(runs))
        try:
            if any(job.config.sweep.dry_run for job in jobs):
                self.plan(jobs)
                return []
            return self._run(jobs, words)
        except COMPOSITION_ERRORS as error:  # a fault of sentexp's own, not of the configuration
            raise RuntimeError("the sweep broke off") from error

    def plan(self, jobs: list[Job]) -> None:
        """Print what would be done."""
        from sentexp.sweeps.plan import plan

        plan([job.config for job in jobs])

    def with_preset(self, arguments: list[str]) -> list[str]:
        """Return the overrides of a preset, but for those whose keys stand on the command line, and these."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = {override.key_or_group for override in parser.parse_overrides(arguments)}
        return [*(f"{key}={value}" for key, value in self.params.items() if key not in given), *arguments]

    def _run(self, jobs: list[Job], words: list[str]) -> "list[Outcome]":
        """Run what is not finished, under the sweep's own MLflow run."""
        from sentexp.recording import recorded
        from sentexp.sweeps.printing import print_beginning
        from sentexp.tracking.identity import digest_of, settings

        folder = self.begin(len(jobs), jobs[0].config)
        earlier = self.find_results(jobs)
        identity = digest_of("sweep", sorted(digest_of(settings(job.config)) for job in jobs))
        axes = {key: ",".join(values) for key, values in _axes(jobs).items()}
        parent = self.open_parent("sweep", jobs[0].config, identity, axes, words)
        with recorded(parent):
            interrupted = sum(job.number not in earlier and _is_interrupted(job) for job in jobs)
            print_beginning("Sweep", len(jobs), len(earlier), interrupted, parent.run_id, folder.path)
            self.finish(jobs, earlier, parent, folder)
            return self.conclude(jobs[0].config, parent, folder)

    def begin(self, total: int, config: Config) -> "SweepFolder":
        """Make the sweep's folder."""
        from sentexp.sweeps.folder import SweepFolder

        folder = SweepFolder(Path(self.config.hydra.sweep.dir))
        folder.begin(total, config.trainer.monitor, config.sweep.max_failures)
        return folder

    def finish(
        self, jobs: list[Job], earlier: "dict[int, Outcome]", parent: "Record", folder: "SweepFolder"
    ) -> "list[Outcome]":
        """Run the jobs that were not finished earlier; return the outcomes of all."""
        self._adopt(parent, earlier, jobs)
        for number, outcome in earlier.items():
            folder.write(number, outcome)
        self._launch([job for job in _once_each(jobs) if job.number not in earlier], folder)
        return self._collect(jobs, folder)

    def conclude(self, config: Config, parent: "Record", folder: "SweepFolder") -> "list[Outcome]":
        """Record and print how the runs ended, and return it."""
        from sentexp.materials import let_go
        from sentexp.sweeps.folder import has_failed
        from sentexp.sweeps.printing import print_outcomes

        outcomes = list(folder.outcomes().values())
        (folder.path / "runs.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
        parent.log_files(folder.path / "runs.json")
        let_go()
        print_outcomes(outcomes, config.trainer.monitor)
        failed = [outcome.name for outcome in outcomes if has_failed(outcome)]
        missing = folder.progress().total - len(outcomes)
        left = missing + sum(outcome.state.value == "not started" for outcome in outcomes)
        if failed or left:
            stopped = f", and {left} were not started (sweep.max_failures)" if left else ""
            raise SweepFailed(f"{len(failed)} of {len(outcomes)} runs failed: {'; '.join(failed)}{stopped}.")
        return outcomes

    def compose(self, runs: Sequence[Sequence[str]], names: Sequence[str], first: int = 0) -> list[Job]:
        """Return the jobs, numbered from `first`, each with a configuration that is right in itself."""
        jobs, wrong = [], []
        for number, (run, name) in enumerate(zip(runs, names, strict=True), first):
            overrides = [*run, f"sweep.name={quoted(name)}"]
            try:
                composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            except COMPOSITION_ERRORS as error:
                raise UserError(explain([*sys.argv[1:], *run], error)) from error
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
                raise UserError(
                    f"The configuration does not fit together ({str(error).splitlines()[0]}): python -m sentexp "
                    "--cfg job lists every key."
                ) from error
            assert isinstance(config, Config)
            _require_single(config, run)
            jobs.append(Job(number=number, overrides=overrides, config=config))
        if wrong:
            raise UserError(" ".join(dict.fromkeys(wrong)))
        return jobs

    def find_results(self, jobs: list[Job]) -> "dict[int, Outcome]":
        """Give the jobs their identities, and return the outcomes of those that are finished."""
        from sentexp.experiment import find_result, lacks_baselines, with_defaults
        from sentexp.materials import find, identify
        from sentexp.sweeps.job import outcome_of

        earlier = {}
        for job in jobs:
            config = with_defaults(job.config)
            try:
                job.identity = identify(find(config))
            except UserError:
                continue  # the run will say so, and leave a record of it
            result = None if config.sweep.rerun else find_result(config, job.identity)
            if result is not None and not lacks_baselines(result, config):
                earlier[job.number] = outcome_of(result, job.config, earlier=True)
        return earlier

    def open_parent(
        self, kind: str, config: Config, identity: str, axes: Mapping[str, str], words: list[str]
    ) -> "Record":
        """Return the sweep's own MLflow run: that of an earlier start of the same sweep, or a new one."""
        from sentexp.tracking.provenance import command, git_state, mask_uri
        from sentexp.tracking.store import find_run, open_record

        tracking = replace(config.tracking, system_metrics=False)
        begun = find_run(tracking, "sweep.identity", identity)
        title = " ".join([kind, *(f"{key.rpartition('.')[2]}={values}" for key, values in axes.items())])
        parent = open_record(
            tracking,
            title[:250],
            None if begun is None else begun.info.run_id,
            {"sweep.identity": identity, "command": command(), "mlflow.source.name": "sentexp", **git_state()},
        )
        given = dict(mask_uri(word).split("=", 1) for word in words if "=" in word)
        parent.log_params(given | dict(axes))
        return parent

    def _adopt(self, parent: "Record", earlier: "dict[int, Outcome]", jobs: list[Job]) -> None:
        """Link finished runs that belong to no sweep to this one, and give the jobs their parent."""
        from sentexp.tracking.store import PARENT, open_store

        if parent.run_id is None:
            return
        store = open_store(jobs[0].config.tracking)
        for outcome in earlier.values():
            if outcome.run_id is not None and PARENT not in store.client.get_run(outcome.run_id).data.tags:
                store.client.set_tag(outcome.run_id, PARENT, parent.run_id)
        for job in jobs:
            job.overrides.append(f"sweep.parent={parent.run_id}")
            job.config = replace(job.config, sweep=replace(job.config.sweep, parent=parent.run_id))

    def _launch(self, jobs: list[Job], folder: "SweepFolder") -> None:
        """Run the jobs; one after the other where the launcher is hydra's own, which works in this process."""
        for job in jobs:
            path = quoted(str(folder.path.absolute()))  # workers may have been started in another folder
            job.overrides += [f"hydra.sweep.dir={path}", f"hydra.sweep.subdir={job.number}"]
        if self.is_in_process():
            for job in jobs:
                self._note([job], self.launcher.launch([job.overrides], initial_job_idx=job.number), folder)
            return
        for attempt in range(1, ATTEMPTS + 1):
            left = [job for job in jobs if job.number not in folder.outcomes()]
            if not left:
                return
            overrides = [[*job.overrides, "trainer.progress_bar=false"] for job in left]
            try:
                results = self.launcher.launch(overrides, initial_job_idx=left[0].number)
            except Exception as error:
                self._tell_of_launcher(error, attempt)
                continue
            self._note(left, results, folder)

    def _tell_of_launcher(self, error: Exception, attempt: int) -> None:
        again = "starting what is left again" if attempt < ATTEMPTS else "what is left counts as killed"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        complain(f"The launcher stopped ({type(error).__name__}: {reason[:200]}): {again}.")

    def _note(self, jobs: list[Job], results: Sequence[JobReturn], folder: "SweepFolder") -> None:
        """Write down the ends of runs that could not: on machines that do not share the folder, or on a full disk."""
        from sentexp.sweeps.folder import Outcome, State
        from sentexp.sweeps.job import report

        ended = folder.outcomes()
        for job, result in zip(jobs, results, strict=True):
            if job.number in ended:
                continue
            outcome = result._return_value
            if isinstance(outcome, Exception):
                told = explain_failure(outcome, job.config.output_dir) or f"{type(outcome).__name__}: {outcome}"
                complain(f"{job.config.sweep.name}: {told}")
                outcome = Outcome(
                    name=str(job.config.sweep.name), state=State.failed, identity=job.identity, error=told
                )
            report(outcome, job.config, folder, job.number)

    def _collect(self, jobs: list[Job], folder: "SweepFolder") -> "list[Outcome]":
        """Return the outcome of every job; one that has none was killed."""
        from sentexp.sweeps.folder import Outcome, State
        from sentexp.tracking.store import open_store

        ended = folder.outcomes()
        by_identity = {job.identity: ended[job.number] for job in jobs if job.identity and job.number in ended}
        for job in jobs:
            name = str(job.config.sweep.name)
            if job.number not in ended and job.identity in by_identity:  # the same run under two names
                folder.write(job.number, replace(by_identity[job.identity], name=name))
            elif job.number not in ended:
                tracking = job.config.tracking
                if tracking.backend is not TrackingBackend.none and job.identity is not None:
                    store = open_store(tracking)
                    for run in store.search(f"attributes.status = 'RUNNING' AND tags.identity = '{job.identity}'"):
                        store.client.set_terminated(run.info.run_id, status="KILLED")
                error = "its process was killed"
                folder.write(job.number, Outcome(name=name, state=State.killed, identity=job.identity, error=error))
        ended = folder.outcomes()
        return [ended[job.number] for job in jobs]


def _fit_to_cluster(config: DictConfig) -> None:
    """Let Ray's launcher ask a running cluster for no object store, and give its workers the name of MLflow's store."""
    from sentexp.tracking.store import URI_VARIABLE

    init = OmegaConf.select(config, "hydra.launcher.ray.init", default={})
    if init.get("address"):
        with open_dict(init):
            init.setdefault("object_store_memory", None)  # the launcher has a default, which such a cluster refuses
            if URI_VARIABLE in os.environ:
                init.setdefault("runtime_env", {"env_vars": {URI_VARIABLE: os.environ[URI_VARIABLE]}})


def _require_single(config: Config, overrides: Sequence[str]) -> None:
    """Refuse runs of several processes: hydra's launchers start one for each run."""
    strategy = config.trainer.strategy.name
    require(
        config.trainer.strategy is Strategy.single,
        f"--multirun starts one process for each run, and trainer={strategy} needs several: start each combination by "
        f"itself, the first as {torchrun_command(overrides)}; the same --multirun without trainer={strategy} then "
        "gathers them in a sweep, and trains none of them again.",
    )


def _once_each(jobs: list[Job]) -> list[Job]:
    """Return the jobs without those whose identity an earlier one has."""
    seen: set[str] = set()
    different = []
    for job in jobs:
        if job.identity is None or job.identity not in seen:
            different.append(job)
        seen |= {job.identity} if job.identity is not None else set()
    return different


def _is_interrupted(job: Job) -> bool:
    """Tell whether an earlier process began the run and did not end it."""
    from sentexp.tracking.folder import STATE

    return job.identity is not None and (Path(job.config.output_dir) / job.identity / STATE).is_file()


def _axes(jobs: list[Job]) -> dict[str, list[str]]:
    """Return the keys whose values differ between jobs, and the values."""
    values: dict[str, list[str]] = {}
    for job in jobs:
        for override in job.overrides:
            key, _, value = override.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: different for key, different in values.items() if len(different) > 1 and key != "sweep.name"}


def quoted(text: str) -> str:
    """Return a text as hydra's override grammar takes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
