"""`hydra/launcher=fused`, the default of `--multirun`: every GPU trains, and runs over one backbone read it together.

Each is a run like any other, with its own record, checkpoints and end; see `sentexp.models.fast.multi_run`. With one
worker all runs are done in this process, with several in processes of their own; see `sentexp.sweeps.workers`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher

from sentexp.errors import require
from sentexp.sweeps.gpus import VISIBLE, gpus_for

if TYPE_CHECKING:
    from sentexp.config import Config
    from sentexp.models.fast.run_thread import GlobalState
    from sentexp.sweeps.group import Work
    from sentexp.sweeps.launch import Job
    from sentexp.sweeps.sweep_dir import Outcome, SweepFolder
    from sentexp.sweeps.workers import WorkerPool

AUTO = "auto"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class FusedLauncher(BasicLauncher):
    """Hydra's own launcher, except for runs that can be fused, and where there are several workers.

    Args:
        max_runs: the most that train at once in a process; measured memory may allow fewer.
        workers: processes; `auto` is one for each visible GPU, and one on the CPU.
    """

    def __init__(self, max_runs: int = 16, workers: int | str = AUTO) -> None:
        super().__init__()
        require(
            isinstance(max_runs, int) and max_runs > 0,
            f"hydra.launcher.max_runs={max_runs} must be a whole number, at least 1.",
        )
        require(
            workers == AUTO or (type(workers) is int and workers > 0),
            f"hydra.launcher.workers={workers} must be auto or a whole number, at least 1.",
        )
        self.max_runs = max_runs
        self.workers = workers
        self.pool: WorkerPool | None = None

    def count_workers(self, configs: "Sequence[Config]") -> int:
        """Return how many processes do these runs.

        Raises:
            UserError: more than there are GPUs.
        """
        gpus = gpus_for(configs)
        if not isinstance(self.workers, int):
            return max(1, len(gpus))
        require(
            not gpus or self.workers <= len(gpus),
            f"hydra.launcher.workers={self.workers} is more than the GPUs that are visible ({len(gpus)}): each worker "
            f"needs its own. Use {len(gpus)} or less, or auto.",
        )
        return self.workers


def run_fused(launcher: FusedLauncher, jobs: "list[Job]", work: "Callable[[Job], None]") -> None:
    """Do runs that can be fused.

    Args:
        launcher: hydra's.
        jobs: the runs.
        work: does one of them in a thread of its own, and tells how it ended.
    """
    from sentexp.models.fast.multi_run import RunScheduler
    from sentexp.system.console import say
    from sentexp.system.device import choose_device

    device = choose_device(jobs[0].config.trainer.accelerator)
    say(f"{len(jobs)} runs train together over one backbone (hydra/launcher=sequential: one after the other)")
    scheduler = RunScheduler(device, launcher.max_runs, _hydra_states())

    def begin(job: "Job") -> Callable[[], None]:
        return lambda: work(job)

    scheduler.run_all([begin(job) for job in jobs])
    say(f"Up to {scheduler.largest_pass} of them read the backbone in one pass")


def run_in_workers(launcher: FusedLauncher, jobs: "list[Job]", folder: "SweepFolder", count: int) -> None:
    """Do runs in several processes; what is in the sweep's folder when this returns has ended."""
    from sentexp.sweeps.job import report
    from sentexp.sweeps.workers import WorkerPool
    from sentexp.system.console import say

    gpus = gpus_for([job.config for job in jobs])
    works = form_groups(jobs, folder, count, launcher.max_runs, share=1.0 if gpus else 1 / count)
    largest = max(len(work.tasks) for work in works)
    together = f", up to {largest} train together" if largest > 1 else ""
    where = "GPUs" if gpus else "processes"
    say(f"{len(jobs)} runs in {len(works)} groups on {min(count, len(works))} {where}{together}")
    configs = {job.number: job.config for job in jobs}

    def tell(number: int, outcome: "Outcome | None") -> None:
        if outcome is not None:
            report(outcome, configs[number], folder, number)

    if launcher.pool is None:
        launcher.pool = WorkerPool(_environments(count, gpus))
    launcher.pool.run(works, tell)


def form_groups(
    jobs: "Sequence[Job]", folder: "SweepFolder", count: int, most: int, share: float = 1.0
) -> "list[Work]":
    """Cut runs into groups for so many processes, the longest first.

    Args:
        jobs: the runs.
        folder: of the sweep.
        count: how many groups are done at once.
        most: runs of a group.
        share: of a device's memory that a group may use.
    """
    from sentexp.run.fusing import fuse
    from sentexp.sweeps.group import Task, Work
    from sentexp.sweeps.lengths import estimate_length
    from sentexp.sweeps.schedule import cut

    fusion = fuse([job.config for job in jobs])
    families = [*fusion.groups, *([number] for number in fusion.reasons)]
    lengths = {number: estimate_length(job.config) for number, job in enumerate(jobs)}
    tasks = [Task(number=job.number, config=job.config, policy=job.policy) for job in jobs]
    return [
        Work(
            tasks=[tasks[number] for number in group.runs],
            together=group.together,
            folder=folder.path.absolute(),
            place=Path.cwd(),
            max_runs=most,
            share=share,
        )
        for group in cut(families, lengths, count, most)
    ]


def _environments(count: int, gpus: list[str]) -> list[dict[str, str]]:
    """Return the variables of each worker: its GPU, and its share of the threads."""
    import torch

    threads = str(max(1, torch.get_num_threads() // count))
    common = dict.fromkeys(THREADS, threads)
    return [common | ({VISIBLE: gpus[number]} if gpus else {}) for number in range(count)]


def _hydra_states() -> "tuple[GlobalState, ...]":
    """Return what hydra keeps of the run that it is at."""
    from hydra.core.hydra_config import HydraConfig

    from sentexp.models.fast.run_thread import GlobalState

    hydra: Any = HydraConfig.instance()

    def restore(config: Any) -> None:
        hydra.cfg = config

    return (GlobalState(lambda: hydra.cfg, restore),)
