"""Doing a group of runs in a process that has no sweep of its own: a worker of this machine, or a job of a cluster."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import Config
from sentexp.sweeps.sweep_dir import Outcome, SweepFolder

if TYPE_CHECKING:
    from sentexp.training.pruning import PruningPolicy

Tell = Callable[[int, Outcome | None], None]
"""Takes the number of a run: with None when it begins, with its outcome when it ends."""


@dataclass(kw_only=True, slots=True)
class Task:
    """A run as it is sent to another process; `policy` may stop it."""

    number: int
    config: Config
    policy: "PruningPolicy | None" = None


@dataclass(kw_only=True, slots=True)
class Work:
    """A group of runs, and what its process has to know.

    Attributes:
        tasks: the runs.
        together: whether those that can train together do so.
        folder: of the sweep, absolute.
        place: the folder in which the sweep was begun.
        max_runs: the most that train at once; measured memory may allow fewer.
        share: of the device's memory that is this process's.
    """

    tasks: list[Task]
    together: bool
    folder: Path
    place: Path
    max_runs: int
    share: float = 1.0


def do_work(work: Work, tell: Tell) -> None:
    """Do the runs of a group, as `run_job` would, and tell of each when it begins and how it ends.

    Raises:
        Preempted: the process has been asked to stop; what runs have done is saved.
    """
    from sentexp.system.garbage import freeze_imports

    if work.place.is_dir():  # a process of a cluster may be on a machine that does not have this folder
        os.chdir(work.place)
    freeze_imports("sentexp.run.train")
    others = work.tasks
    if work.together:
        from sentexp.run.fusing import fuse

        fusion = fuse([task.config for task in work.tasks])  # again: this may be another machine
        for numbers in fusion.groups:
            _train_together(work, [work.tasks[number] for number in numbers], tell)
        others = [work.tasks[number] for number in fusion.reasons]
    for task in others:
        _do(work, task, tell)


def _train_together(work: Work, tasks: list[Task], tell: Tell) -> None:
    from sentexp.models.fast.multi_run import RunScheduler
    from sentexp.system.device import choose_device

    device = choose_device(tasks[0].config.trainer.accelerator)
    scheduler = RunScheduler(device, work.max_runs, share=work.share)
    scheduler.run_all([partial(_do, work, task, tell) for task in tasks])


def _do(work: Work, task: Task, tell: Tell) -> None:
    from sentexp.sweeps.job import do_job
    from sentexp.training.preemption import Preempted, is_asked_to_stop

    if is_asked_to_stop():
        raise Preempted
    tell(task.number, None)
    config = replace(task.config, trainer=replace(task.config.trainer, progress_bar=False))
    tell(task.number, do_job(config, SweepFolder(work.folder), task.number, task.policy))
