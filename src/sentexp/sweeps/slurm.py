"""`hydra/launcher=submitit_slurm`: jobs of SLURM, by submitit.

A job that reaches its time limit, or that is preempted, saves what its runs have done, is queued again, and continues.
"""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sentexp.errors import UserError, complain
from sentexp.sweeps.cluster import ClusterLauncher, Ends, do_and_return, plain
from sentexp.sweeps.group import Work
from sentexp.sweeps.sweep_dir import Outcome

if TYPE_CHECKING:
    from submitit import Job as SlurmJob

GENERAL = (
    "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout"
)  # fmt: skip
"""Parameters that submitit has for every kind of cluster; it knows the others by a prefix."""
POLL, GRACE, STATES = 1.0, 10.0, 30.0
"""Seconds between two looks, until a result must be visible of a job that has left the queue, and between two lines."""


class SlurmLauncher(ClusterLauncher):
    """Jobs of SLURM.

    Args:
        runs_per_job: runs of a job.
        submitit_folder: where submitit keeps jobs and their logs.
        max_num_timeout: how often a job is queued again that has reached its time limit.
        parameters: of the job, as the plugin of hydra's has them.
    """

    def __init__(
        self, runs_per_job: int | str = 1, submitit_folder: str = ".submitit/%j", max_num_timeout: int = 20,
        **parameters: Any,
    ) -> None:  # fmt: skip
        super().__init__(runs_per_job)
        self.submitit_folder, self.max_num_timeout = submitit_folder, max_num_timeout
        self.parameters = {name: plain(value) for name, value in parameters.items()}
        self._said, self._said_at = "", 0.0

    takes_several_processes = True

    @property
    def processes_per_job(self) -> int:
        """Return how many processes a job has."""
        return int(self.parameters.get("nodes", 1) * self.parameters.get("tasks_per_node", 1))

    def run(self, works: list[Work], ends: Ends) -> None:
        """Submit groups of runs, and wait until each has ended.

        Raises:
            UserError: sbatch does not take them.
        """
        from sentexp.system.console import say

        jobs = self._submit(works)
        ids = [job.job_id for job in jobs]
        say(f"Submitted {len(ids)} {'jobs' if len(ids) > 1 else 'job'} of SLURM: {', '.join(ids)}")
        try:
            self._wait(dict(zip(ids, zip(jobs, works, strict=True), strict=True)), ends)
        except BaseException:
            say(f"The jobs continue; scancel {' '.join(sorted({each.partition('_')[0] for each in ids}))} ends them.")
            raise

    def _submit(self, works: list[Work]) -> "list[SlurmJob[Any]]":
        import submitit

        delay = int(self.parameters.get("signal_delay_s", 120))
        folder = Path(self.submitit_folder).absolute()
        given = {name if name in GENERAL else f"slurm_{name}": value for name, value in self.parameters.items()}
        try:
            with redirect_stderr(io.StringIO()):  # what sbatch says is in the error as well
                executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout)
                executor.update_parameters(**given)
                return executor.submit_array([GroupJob(work, max(1, delay // 2)) for work in works])
        except (RuntimeError, ValueError, NameError) as error:
            words = str(error).strip().rpartition("\n")[2].removeprefix("sbatch: error: ")
            raise UserError(f"SLURM does not take the jobs: {words[:500]}") from error

    def _wait(self, jobs: "dict[str, tuple[SlurmJob[Any], Work]]", ends: Ends) -> None:
        """Look after jobs until none is left."""
        gone: dict[str, float] = {}
        total = len(jobs)
        while jobs:
            states = queue_states()
            for number, (job, work) in list(jobs.items()):
                if job.task(0).paths.result_pickle.exists():
                    self._take_result(job, work, ends)
                    del jobs[number]
                elif states is None or number in states:
                    gone.pop(number, None)
                elif time.monotonic() - gone.setdefault(number, time.monotonic()) > GRACE:
                    _complain_of_loss(job, ends)
                    del jobs[number]
            ends.look()
            if states is not None:
                self._say_states([states.get(number, "ENDED") for number in jobs], total)
            time.sleep(POLL if jobs else 0)

    def _take_result(self, job: "SlurmJob[Any]", work: Work, ends: Ends) -> None:
        """Take the ends of a job's runs; without them they failed."""
        error = job.task(0).exception()
        if error is None:
            found: list[tuple[int, Outcome]] = job.task(0).result()
            for number, outcome in found:
                ends.take(number, outcome)
            return
        lines = [line for line in str(error).splitlines() if line.strip()]
        ends.fail(work, f"{lines[-1].strip()} The log of job {job.job_id}: {job.task(0).paths.stderr}")

    def _say_states(self, states: list[str], total: int) -> None:
        """Print how many jobs are in which state, where someone is looking, when that has changed; not too often."""
        from sentexp.system.console import OUT, say

        running = sum(state in ("RUNNING", "COMPLETING", "ENDED") for state in states)
        line = f"{len(states) - running} queued, {running} running, {total - len(states)} done"
        if OUT.is_terminal and states and line != self._said and time.monotonic() - self._said_at > STATES:
            say(f"Jobs: {line}")
            self._said, self._said_at = line, time.monotonic()


@dataclass(slots=True)
class GroupJob:
    """What submitit calls in a job, again after the job was queued again.

    Attributes:
        work: the runs.
        patience: seconds that they have to save their state once SLURM has warned of the end.
    """

    work: Work
    patience: int

    def __call__(self) -> list[tuple[int, Outcome]]:
        """Do the runs; return how they ended, by their numbers."""
        from sentexp.training import preemption

        number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        requeue: Any = signal.getsignal(number)

        def save(signum: int, frame: FrameType | None) -> None:
            preemption.ask_runs_to_stop()
            if signum == number:  # where nothing can be saved now, the job is queued again as it is
                signal.signal(signal.SIGALRM, lambda *_: requeue(signum, frame))
                signal.alarm(self.patience)

        preemption.forget()
        signal.signal(number, save)
        signal.signal(signal.SIGTERM, save)  # cancelled or queued again by somebody else: SIGKILL follows
        try:
            return do_and_return(self.work)
        except preemption.Preempted:
            if signal.getitimer(signal.ITIMER_REAL)[0]:
                signal.alarm(0)
                requeue(number, None)
            sys.exit(128 + signal.SIGTERM)

    def checkpoint(self) -> Any:
        """Return what submitit starts when the job begins again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def queue_states() -> dict[str, str] | None:
    """Return the states of this user's jobs in the queue, by number; None where squeue does not answer."""
    words = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


def _complain_of_loss(job: "SlurmJob[Any]", ends: Ends) -> None:
    """Say that a job is gone which left no result."""
    log = job.task(0).paths.stderr
    what = f"Job {job.job_id} has left the queue without a result ({_last_state(job.job_id)})"
    if log.exists():
        complain(f"{what}. Its log: {log}")
    else:
        complain(f"{what} and without a log: do all nodes share {ends.folder.path.absolute()}?")


def _last_state(number: str) -> str:
    """Return how a job ended by SLURM's accounting, which a cluster need not have."""
    words = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "cancelled or killed"
    return done.stdout.strip().lower() or "cancelled or killed"
