"""Starting the runs of a sweep with any launcher of hydra's, and gathering how they ended.

What happens in the launcher's processes is `run_job`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict

from sentexp.config import Config, Strategy, TrackingBackend
from sentexp.distributed.launch import torchrun_command
from sentexp.errors import complain, require
from sentexp.run.failures import explain_failure
from sentexp.run.fusing import fuse
from sentexp.sweeps.cluster import ClusterLauncher, require_processes, run_on_cluster
from sentexp.sweeps.fused import FusedLauncher, run_fused, run_in_workers
from sentexp.sweeps.gpus import gpus_for, gpus_to_take
from sentexp.tracking.next_steps import quoted

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

    from sentexp.sweeps.sweep_dir import Outcome, SweepFolder
    from sentexp.training.pruning import PruningPolicy

AGAIN = "starting the remaining runs again"


@dataclass(kw_only=True, slots=True)
class Job:
    """A run of the sweep: its number, overrides, configuration, identity where it could be found, what may stop it."""

    number: int
    overrides: list[str]
    config: Config
    identity: str | None = None
    policy: "PruningPolicy | None" = None


def is_one_by_one(launcher: "Launcher") -> bool:
    """Tell whether the launcher is hydra's own, which runs one job after the other in this process.

    By name: hydra loads the modules of its plugins anew when it looks for them, so that a class can be there twice.
    """
    return type(launcher).__name__ == BasicLauncher.__name__


def check_launcher(launcher: "Launcher", config: Config) -> None:
    """Say which GPUs a sweep uses, where that is not all of them.

    Raises:
        UserError: there are more processes than GPUs, or a cluster cannot be used.
    """
    from sentexp.system.console import say

    if isinstance(launcher, ClusterLauncher):
        launcher.check()
        return
    gpus = gpus_for([config])
    if isinstance(launcher, FusedLauncher):
        launcher.count_workers([config])
    elif is_one_by_one(launcher) and len(gpus) > 1:
        say(f"hydra/launcher=sequential uses one of the {len(gpus)} GPUs; hydra/launcher=fused uses all.")
    elif gpus and (processes := _count_joblib(launcher)):
        require(
            processes <= len(gpus),
            f"hydra.launcher.n_jobs starts {processes} processes, and each needs its own of the GPUs that are visible "
            f"({len(gpus)}): give hydra.launcher.n_jobs={len(gpus)} or less, or hydra/launcher=fused, which uses all.",
        )


def close_launcher(launcher: "Launcher") -> None:
    """Let the workers of a launcher end: a search has kept them from one batch of trials to the next."""
    if isinstance(launcher, FusedLauncher) and launcher.pool is not None:
        launcher.pool.close()
        launcher.pool = None


def _count_joblib(launcher: "Launcher") -> int:
    """Return how many processes joblib will start; 0 for another launcher."""
    if type(launcher).__name__ != "JoblibLauncher":
        return 0
    from joblib import effective_n_jobs  # type: ignore[import-untyped]

    return int(effective_n_jobs(launcher.joblib.get("n_jobs", 1)))  # type: ignore[attr-defined]


def fit_to_cluster(config: DictConfig) -> None:
    """Let Ray's launcher ask a running cluster for no object store, and give its workers the name of MLflow's store."""
    from sentexp.tracking.store import URI_VARIABLE

    init = OmegaConf.select(config, "hydra.launcher.ray.init", default={})
    if init.get("address"):
        with open_dict(init):
            init.setdefault("object_store_memory", None)  # the launcher has a default, which such a cluster refuses
            if URI_VARIABLE in os.environ:
                init.setdefault("runtime_env", {"env_vars": {URI_VARIABLE: os.environ[URI_VARIABLE]}})


def launch(launcher: "Launcher", jobs: list[Job], folder: "SweepFolder") -> None:
    """Run the jobs; one after the other where the launcher is hydra's own, which works in this process."""
    if not jobs:
        return
    for job in jobs:
        path = quoted(str(folder.path.absolute()))  # workers may have been started in another folder
        job.overrides += [f"hydra.sweep.dir={path}", f"hydra.sweep.subdir={job.number}"]
    if isinstance(launcher, FusedLauncher):
        count = launcher.count_workers([job.config for job in jobs])
        if count > 1 and len(jobs) > 1:
            run_in_workers(launcher, jobs, folder, count)
            return
    if isinstance(launcher, ClusterLauncher):
        run_on_cluster(launcher, jobs, folder)
        return
    if is_one_by_one(launcher) or isinstance(launcher, FusedLauncher):
        for job in _fused(launcher, jobs, folder) if isinstance(launcher, FusedLauncher) else jobs:
            note([job], launcher.launch([job.overrides], initial_job_idx=job.number), folder)
        return
    gpus = gpus_for([job.config for job in jobs]) if _count_joblib(launcher) else []
    with gpus_to_take(folder.path / "gpus", gpus):
        _launch_all(launcher, jobs, folder)


def _launch_all(launcher: "Launcher", jobs: list[Job], folder: "SweepFolder") -> None:
    """Give a launcher all jobs, and those that are left again when it breaks down."""
    from sentexp.sweeps.sweep_dir import ATTEMPTS

    for attempt in range(1, ATTEMPTS + 1):
        left = [job for job in jobs if job.number not in folder.outcomes()]
        if not left:
            return
        overrides = [[*job.overrides, "trainer.progress_bar=false"] for job in left]
        try:
            results = launcher.launch(overrides, initial_job_idx=left[0].number)
        except Exception as error:
            _tell_of_launcher(error, "the remaining runs count as killed" if attempt == ATTEMPTS else AGAIN)
            continue
        note(left, results, folder)


def _fused(launcher: FusedLauncher, jobs: list[Job], folder: "SweepFolder") -> list[Job]:
    """Do the jobs that train together, and return the others."""
    fusion = fuse([job.config for job in jobs])
    for group in fusion.groups:
        run_fused(launcher, [jobs[number] for number in group], partial(_in_thread, launcher, folder))
    return [jobs[number] for number in fusion.reasons]


def _in_thread(launcher: FusedLauncher, folder: "SweepFolder", job: Job) -> None:
    """Do one of several runs that move in turn."""
    results = launcher.launch([[*job.overrides, "trainer.progress_bar=false"]], initial_job_idx=job.number)
    note([job], results, folder)


def _tell_of_launcher(error: Exception, then: str) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    complain(f"The launcher stopped ({type(error).__name__}: {reason[:200]}): {then}.")


def note(jobs: list[Job], results: Sequence[JobReturn], folder: "SweepFolder") -> None:
    """Write down the ends of runs that could not: on machines that do not share the folder, or on a full disk."""
    from sentexp.sweeps.job import report
    from sentexp.sweeps.sweep_dir import Outcome, State

    ended = folder.outcomes()
    for job, result in zip(jobs, results, strict=True):
        if job.number in ended:
            continue
        outcome = result._return_value
        if isinstance(outcome, Exception):
            reason = explain_failure(outcome, job.config.output_dir) or f"{type(outcome).__name__}: {outcome}"
            complain(f"{job.config.sweep.name}: {reason}")
            outcome = Outcome(name=str(job.config.sweep.name), state=State.failed, identity=job.identity, error=reason)
        elif not isinstance(outcome, Outcome):  # this process has printed why
            error = "its end could not be recorded"
            outcome = Outcome(name=str(job.config.sweep.name), state=State.failed, identity=job.identity, error=error)
        report(outcome, job.config, folder, job.number)


def collect(jobs: list[Job], folder: "SweepFolder") -> "list[Outcome]":
    """Return the outcome of every job; one that has none was killed."""
    from sentexp.sweeps.sweep_dir import Outcome, State
    from sentexp.tracking.sqlite_reader import Wanted
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
                for run in store.search(Wanted(status="RUNNING", tag="identity", value=job.identity)):
                    store.client.set_terminated(run.info.run_id, status="KILLED")
            error = "its process was killed"
            folder.write(job.number, Outcome(name=name, state=State.killed, identity=job.identity, error=error))
    ended = folder.outcomes()
    return [ended[job.number] for job in jobs]


def once_each(jobs: list[Job]) -> list[Job]:
    """Return the jobs without those whose identity an earlier one has."""
    seen: set[str] = set()
    different = []
    for job in jobs:
        if job.identity is None or job.identity not in seen:
            different.append(job)
        seen |= {job.identity} if job.identity is not None else set()
    return different


def require_strategy(launcher: "Launcher", config: Config, overrides: Sequence[str]) -> None:
    """Refuse runs of several processes where the launcher starts one for each run.

    Raises:
        UserError: says which other command does.
    """
    strategy = config.trainer.strategy
    if isinstance(launcher, ClusterLauncher) and launcher.takes_several_processes:
        require_processes(launcher, strategy.name)
        return
    require(
        strategy is Strategy.single,
        f"This launcher starts one process for each run, and trainer={strategy.name} needs several: use "
        "hydra/launcher=submitit_slurm, or start each combination by itself, the first as "
        f"{torchrun_command(overrides)}; the same --multirun without trainer={strategy.name} then gathers them in a "
        "sweep, and trains none of them again.",
    )
