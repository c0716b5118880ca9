"""Who started this process: torchrun, srun or a person; and the commands that start several."""

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sentexp.config import Strategy
from sentexp.errors import require


@dataclass(frozen=True, slots=True)
class Launch:
    """How this process was started: by torchrun, srun or neither; its rank, how many there are, its local rank."""

    launcher: str | None = None
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def current_launch() -> Launch:
    """Return how this process was started."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        numbers = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Launch("torchrun", *numbers)
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:  # a batch script without srun has no step
        numbers = (int(env[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
        return Launch("srun", *numbers)
    return Launch()


def torchrun_command(words: Iterable[str]) -> str:
    """Return the command that starts two processes on this machine with these arguments."""
    return f"torchrun --nproc-per-node 2 -m sentexp {shlex.join(words)}".rstrip()


def require_one(what: str) -> None:
    """Refuse to do in several processes what is for one.

    Raises:
        UserError: torchrun has started more than one.
    """
    launch = current_launch()
    require(
        launch.launcher != "torchrun" or launch.world_size == 1,
        f"torchrun has started {launch.world_size} processes, and {what} is for one: start it as python -m sentexp.",
    )


def require_launched(strategy: Strategy) -> None:
    """Refuse a strategy for which this process was not started as it needs.

    Raises:
        UserError: says how to start it.
    """
    if strategy is Strategy.single:
        require_one(f"trainer.strategy=single (torchrun needs trainer=ddp or trainer=fsdp: {_as_typed('ddp')})")
        return
    require(
        current_launch().launcher is not None,
        f"trainer={strategy.name} trains in several processes, and a launcher must start them: "
        f"{_as_typed(strategy.name)}, or srun python -m sentexp in a SLURM job; trainer=default is for one process.",
    )


def _as_typed(option: str) -> str:
    """Return the command line of this process as torchrun would take it."""
    is_command = "sentexp" in Path(sys.argv[0]).parts[-2:]  # not a notebook
    given = sys.argv[1:] if is_command else []
    words = [word for word in given if not word.startswith(("trainer=", "trainer.strategy="))]
    return torchrun_command([*words, f"trainer={option}"])
