"""Clusters: a sweep's runs are sent as jobs, each a group of them, and their ends gathered here."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from sentexp.config import Config
from sentexp.errors import complain, require
from sentexp.sweeps.group import Task, Work
from sentexp.sweeps.schedule import cut
from sentexp.sweeps.sweep_dir import ATTEMPTS, LOG, Outcome, State, SweepFolder, has_failed

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from sentexp.sweeps.launch import Job

AUTO = "auto"
MOST = 16
"""Runs of a job with `runs_per_job=auto`."""


class ClusterLauncher(Launcher):
    """A launcher that takes groups of runs, not hydra's jobs.

    Args:
        runs_per_job: runs of a job; `auto`: those that can train together, and one of the others.
    """

    def __init__(self, runs_per_job: int | str = 1) -> None:
        require(
            runs_per_job == AUTO or (type(runs_per_job) is int and runs_per_job > 0),
            f"hydra.launcher.runs_per_job={runs_per_job} must be auto or a whole number, at least 1.",
        )
        self.runs_per_job = runs_per_job

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig") -> None:
        """Nothing of hydra's is needed."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Refuse: a cluster is given groups, by `run`."""
        raise TypeError(f"{type(self).__name__} does groups of runs, not job {initial_job_idx} of {len(job_overrides)}")

    takes_several_processes = False
    """Whether a job can have several, for one run."""

    @property
    def processes_per_job(self) -> int:
        """Return how many processes a job has."""
        return 1

    def check(self) -> None:
        """Find out whether the cluster can be used.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def run(self, works: list[Work], ends: "Ends") -> None:
        """Send groups of runs, and wait until each has ended; runs without an end were killed.

        Raises:
            UserError: the cluster does not take them.
        """


class Ends:
    """The ends of a sweep's runs: those that jobs write into its folder, and those that they return.

    Args:
        jobs: the runs.
        folder: of the sweep.
    """

    def __init__(self, jobs: "Sequence[Job]", folder: SweepFolder) -> None:
        self.folder = folder
        self._configs = {job.number: job.config for job in jobs}
        self._seen = set(folder.outcomes())

    def look(self) -> None:
        """Report the runs that have ended since."""
        for number, outcome in self.folder.outcomes().items():
            if number in self._configs and number not in self._seen:
                self._seen.add(number)
                self._report(number, outcome)

    def take(self, number: int, outcome: Outcome) -> None:
        """Write down and report the end of a run, unless it is known."""
        if number not in self.folder.outcomes():
            self.folder.write(number, outcome)
        self.look()

    def fail(self, work: Work, reason: str) -> None:
        """Report that the runs of a job failed which have not ended."""
        ended = self.folder.outcomes()
        for task in work.tasks:
            if task.number not in ended:
                self.take(task.number, Outcome(name=name_of(task), state=State.failed, error=reason))

    def _report(self, number: int, outcome: Outcome) -> None:
        from sentexp.sweeps.job import log_progress
        from sentexp.sweeps.report import print_progress

        config: Config = self._configs[number]
        log = self.folder.of(number) / LOG
        if has_failed(outcome):
            where = f" Its log: {log}" if log.is_file() else ""
            complain(f"{outcome.name}: {outcome.error}{where}")
        progress = replace(self.folder.progress(), ended=len(self._seen))  # others may have ended, and are next
        print_progress(outcome, progress, config.trainer.monitor)
        log_progress(config, self.folder)


def run_on_cluster(launcher: ClusterLauncher, jobs: "list[Job]", folder: SweepFolder) -> None:
    """Do runs as jobs of a cluster; what is in the sweep's folder when this returns has ended.

    Runs of jobs that were killed are sent once more, each as a job of its own.
    """
    ends = Ends(jobs, folder)
    for attempt in range(1, ATTEMPTS + 1):
        ended = folder.outcomes()
        left = [job for job in jobs if job.number not in ended]
        if not left:
            return
        if attempt > 1:
            complain(f"{len(left)} of the runs were killed with their jobs, and are sent once more.")
        launcher.run(form_jobs(left, folder, launcher.runs_per_job if attempt == 1 else 1), ends)
        ends.look()


def form_jobs(jobs: "Sequence[Job]", folder: SweepFolder, runs_per_job: int | str) -> list[Work]:
    """Return the groups of runs that are one job each, the longest first.

    With a number, runs that cannot train together follow each other in a job.
    """
    from sentexp.run.fusing import fuse
    from sentexp.sweeps.lengths import estimate_length

    most = MOST if runs_per_job == AUTO else int(runs_per_job)
    fusion = fuse([job.config for job in jobs])
    lengths = {number: estimate_length(job.config) for number, job in enumerate(jobs)}
    groups: list[tuple[int, ...]] = []
    for family in fusion.groups:
        groups += [group.runs for group in cut([family], lengths, -(-len(family) // most), most)]
    alone, size = list(fusion.reasons), 1 if runs_per_job == AUTO else most
    groups += [tuple(alone[start : start + size]) for start in range(0, len(alone), size)]
    tasks = [Task(number=job.number, config=job.config, policy=job.policy) for job in jobs]
    return [
        Work(
            tasks=[tasks[number] for number in group],
            together=len(group) > 1,
            folder=folder.path.absolute(),
            place=Path.cwd(),
            max_runs=most,
        )
        for group in sorted(groups, key=lambda group: -sum(lengths[number] for number in group))
    ]


def do_and_return(work: Work) -> list[tuple[int, Outcome]]:
    """Do the runs of a group in a job; return how they ended, and write it where the job shares the sweep's folder.

    Runs that had ended when the job was started again are left out.
    """
    from sentexp.distributed.launch import current_launch
    from sentexp.sweeps.group import do_work

    folder = SweepFolder(work.folder)
    numbers = {task.number for task in work.tasks}
    ends: dict[int, Outcome] = {}
    if folder.is_here():
        ends = {number: outcome for number, outcome in folder.outcomes().items() if number in numbers}

    def tell(number: int, outcome: Outcome | None) -> None:
        if outcome is not None:
            ends[number] = outcome
            if folder.is_here() and current_launch().rank == 0:
                folder.write(number, outcome)

    do_work(replace(work, tasks=[task for task in work.tasks if task.number not in ends]), tell)
    return list(ends.items())


def name_of(task: Task) -> str:
    """Return the name that the sweep has given a run."""
    return str(task.config.sweep.name)


def plain(value: Any) -> Any:
    """Return a part of hydra's configuration as dictionaries and lists."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def require_processes(launcher: ClusterLauncher, strategy: str) -> None:
    """Refuse jobs whose number of processes does not fit the strategy of the runs.

    Raises:
        UserError: several processes for a run of one, or the other way round.
    """
    count = launcher.processes_per_job
    require(
        strategy == "single" or count > 1,
        f"trainer={strategy} trains a run in several processes, and a job has one: give "
        "hydra.launcher.tasks_per_node=2, or as many as a node has GPUs.",
    )
    require(
        strategy != "single" or count == 1,
        f"hydra.launcher.tasks_per_node={count} starts {count} processes for each job, and a run has one: add "
        "trainer=ddp or trainer=fsdp.",
    )
