"""Several processes of this machine that do the runs of a sweep, each on a GPU of its own.

Each takes one group of runs after the other, and tells this process of every run that begins or ends. A worker that is
killed is replaced, and its runs are done by others; a run that takes two workers down counts as killed.
"""

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from sentexp.errors import complain
from sentexp.sweeps.group import Task, Tell, Work, do_work
from sentexp.sweeps.sweep_dir import ATTEMPTS
from sentexp.system.signals import raise_on_signal

PATIENCE = 60
"""Seconds for what a run saves when it is interrupted."""

Serve = Callable[[Connection], None]


class Stopped(BaseException):
    """The sweep is interrupted, or its process is gone."""


@dataclass(slots=True)
class Worker:
    """A process, what it is sent and sends, the group that it is at, and runs of it that have begun and not ended."""

    process: SpawnProcess
    pipe: Connection
    work: Work | None = None
    begun: frozenset[int] = frozenset()
    ended: frozenset[int] = frozenset()
    has_begun_any: bool = False


class WorkerPool:
    """Processes that start when there is something for them to do.

    Args:
        environments: variables of each, beside those of this process.
        serve: what a worker does.
    """

    def __init__(self, environments: Sequence[dict[str, str]], serve: Serve | None = None) -> None:
        self._environments = list(environments)
        self._serve = serve or serve_groups
        self._workers: list[Worker | None] = [None] * len(self._environments)
        self._deaths: Counter[int] = Counter()
        """By run."""
        self._false_starts: Counter[int] = Counter()
        """By worker: processes that ended before they had begun a run."""

    def run(self, works: Sequence[Work], tell: Tell) -> None:
        """Do groups of runs, in this order, and tell of each run that begins or ends.

        A run whose end was not reported when this returns was killed.
        """
        waiting, self._deaths, self._false_starts = deque(works), Counter(), Counter()
        try:
            while True:
                for number in range(len(self._workers)):
                    if waiting and self._is_free(number):
                        self._give(number, waiting.popleft())
                busy = {n: worker for n, worker in enumerate(self._workers) if worker is not None and worker.work}
                if not busy:
                    return
                wait([item for worker in busy.values() for item in (worker.pipe, worker.process.sentinel)])
                for number, worker in busy.items():
                    if not self._listen(worker, tell):
                        self._workers[number] = None
                        self._false_starts[number] += not worker.has_begun_any
                        waiting.extendleft(reversed(self._left_by(worker)))
        except BaseException:
            self._interrupt()
            raise

    def close(self) -> None:
        """End the workers, all of which are idle."""
        for worker in self._workers:
            if worker is not None:
                worker.pipe.close()
        for worker in self._workers:
            if worker is not None:
                worker.process.join()
        self._workers = [None] * len(self._workers)

    def _is_free(self, number: int) -> bool:
        worker = self._workers[number]
        return (worker is None or worker.work is None) and self._false_starts[number] < ATTEMPTS

    def _give(self, number: int, work: Work) -> None:
        worker = self._workers[number]
        if worker is None or not worker.process.is_alive():
            worker = self._workers[number] = self._start(self._environments[number])
        worker.work, worker.begun, worker.ended = work, frozenset(), frozenset()
        try:
            worker.pipe.send(work)
        except OSError:  # it has just ended, which `run` finds
            return

    def _start(self, environment: dict[str, str]) -> Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_live, args=(theirs, self._serve), daemon=True)
        with _environment(environment):
            process.start()
        theirs.close()
        return Worker(process, ours)

    def _listen(self, worker: Worker, tell: Tell) -> bool:
        """Take what a worker has sent; return whether it lives."""
        try:
            while worker.work is not None and worker.pipe.poll():
                message = worker.pipe.recv()
                if message is None:
                    worker.work = None
                    return True
                number, outcome = message
                worker.has_begun_any = True
                worker.begun |= {number}
                worker.ended |= set() if outcome is None else {number}
                tell(number, outcome)
        except (EOFError, OSError):
            worker.process.join()
        return worker.process.is_alive()

    def _left_by(self, worker: Worker) -> list[Work]:
        """Return what a worker that has died leaves to do: runs that it had begun one by one, the others together."""
        assert worker.work is not None
        work = worker.work
        self._deaths.update(worker.begun - worker.ended)
        tasks = [task for task in work.tasks if task.number not in worker.ended]
        again = [task for task in tasks if task.number in worker.begun and self._deaths[task.number] < ATTEMPTS]
        untouched = [task for task in tasks if task.number not in worker.begun]
        _complain_of_death(worker, again + untouched)
        others = [replace(work, tasks=untouched, together=work.together and len(untouched) > 1)] if untouched else []
        return [replace(work, tasks=[task], together=False) for task in again] + others

    def _interrupt(self) -> None:
        """End all workers: runs save what they have. A second interrupt does not wait for that."""
        alive = [worker.process for worker in self._workers if worker is not None]
        for process in alive:
            process.terminate()
        try:
            for process in alive:
                process.join(PATIENCE)
        finally:
            for process in alive:
                process.kill()
            self._workers = [None] * len(self._workers)


def serve_groups(pipe: Connection) -> None:
    """Do the groups that come by a pipe, until there are no more."""
    while True:
        work: Work = pipe.recv()
        do_work(work, lambda number, outcome: pipe.send((number, outcome)))
        pipe.send(None)


def _live(pipe: Connection, serve: Serve) -> None:
    """Be a worker: deaf to the keyboard's interrupt, which the process that has begun the sweep passes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_on_signal(signal.SIGTERM, Stopped, once=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(pipe)
    except (EOFError, Stopped, BrokenPipeError):
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _complain_of_death(worker: Worker, left: list[Task]) -> None:
    code = worker.process.exitcode
    why = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    again = f": {len(left)} of its runs {'are' if len(left) > 1 else 'is'} started again" if left else ""
    complain(f"A worker process ended {why}{again}.")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
