"""Which GPU each process of a sweep takes, on a machine that has several."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sentexp.config import Config

VISIBLE, TO_TAKE = "CUDA_VISIBLE_DEVICES", "SENTEXP_GPUS_TO_TAKE"
"""What CUDA reads, and the folder with a file for each GPU that a process may take."""
_taken: list[FileLock] = []


def gpus_for(configs: Iterable[Config]) -> list[str]:
    """Return the GPUs that runs may compute on, by their names in CUDA_VISIBLE_DEVICES; none where all use the CPU."""
    from sentexp.system.device import visible_gpus

    return visible_gpus() if any(config.trainer.accelerator != "cpu" for config in configs) else []


@contextmanager
def gpus_to_take(folder: Path, gpus: list[str]) -> Iterator[None]:
    """Let each process that is started meanwhile take one of these GPUs when it does its first run."""
    if not gpus:
        yield
        return
    folder.mkdir(exist_ok=True)
    for gpu in gpus:
        (folder / gpu).touch()
    os.environ[TO_TAKE] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[TO_TAKE]


def take_gpu() -> None:
    """Take a GPU that no other process of the sweep has, for as long as this process lives; before CUDA is used."""
    if TO_TAKE not in os.environ or _taken:
        return
    for file in sorted(Path(os.environ[TO_TAKE]).iterdir()):
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        _taken.append(lock)
        os.environ[VISIBLE] = file.name
        return
