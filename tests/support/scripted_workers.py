"""Workers that train nothing: what each does with a run follows from the name of the run."""

import os
import signal
import time
from pathlib import Path

from sentexp.sweeps.sweep_dir import Outcome, State


def serve(pipe):
    """Do groups of runs as their names say.

    `fine` ends well; `deadly` takes the process down each time, `frail` the first time, `late` when another has
    ended; `waits` lasts until it is interrupted, and then leaves a file. All write their variables and their process.
    """
    while True:
        work = pipe.recv()
        for task in work.tasks:
            _do(task, work.folder, pipe)
        pipe.send(None)


def serve_nothing(pipe):
    """End at once."""
    os._exit(3)


def _do(task, folder, pipe):
    name = task.config.sweep.name
    pipe.send((task.number, None))
    begun = folder / f"{name}.begun"
    with begun.open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ['OMP_NUM_THREADS']}\n")
    if name.startswith("deadly") or (name.startswith("frail") and begun.read_text().count("\n") == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("waits"):
        try:
            while True:
                time.sleep(0.01)
        finally:
            Path(folder / f"{name}.saved").touch()
    pipe.send((task.number, Outcome(name=name, state=State.finished, objective=0.5, metrics={"seconds": 1.0})))
