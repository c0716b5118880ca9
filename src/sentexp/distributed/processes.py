"""The processes of one run: who started them, and what they tell each other. The first of them leads.

All of them go through the same protocol on their own share of the rows. The leading one alone decides, writes and
prints (`led`). Every word between them is an `exchange`; in it a process that cannot go on says so, and the others stop
as well instead of waiting for it. torch is imported where it is used: the command line asks who started it.
"""

import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sentexp.config import Strategy
from sentexp.errors import OutOfMemory, UserError, require

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: the leader may fit baselines, or wait for another run's, meanwhile."""
LAST_WORDS = timedelta(seconds=10)
"""How long a process that fails waits for the others, where they may be in the middle of a forward pass of shards."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How this process was started: by torchrun, srun or neither; its number, how many there are, its local number."""

    launcher: str | None = None
    rank: int = 0
    count: int = 1
    local_rank: int = 0


class ProcessFailed(Exception):
    """Another process of the run has failed; it tells why."""


class ProcessLost(UserError):
    """Another process of the run has ended without a word."""

    def __init__(self) -> None:
        super().__init__(
            "A process of this run was killed, or its machine cannot be reached: the same command goes on from the "
            "last checkpoint."
        )


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a process says that cannot go on."""

    rank: int
    reason: str
    out_of_memory: bool


@dataclass(frozen=True, slots=True)
class _Group:
    """The processes that have joined, and the channel of their exchanges.

    Of a sharded model, those that fail first meet on an impatient channel: the others may wait elsewhere, for a layer.
    """

    launch: Launch
    channel: Any
    impatient: Any = None


class _State:
    """What this process is of; without a group it is alone. `speaks` is known once it has joined."""

    group: _Group | None = None
    speaks: bool | None = None


_own = _State()


def launch() -> Launch:
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
    own = launch()
    require(
        own.launcher != "torchrun" or own.count == 1,
        f"torchrun has started {own.count} processes, and {what} is for one: start it as python -m sentexp.",
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
        launch().launcher is not None,
        f"trainer={strategy.name} trains in several processes, and a launcher must start them: "
        f"{_as_typed(strategy.name)}, or srun python -m sentexp in a SLURM job; trainer=default is for one process.",
    )


@contextmanager
def joined(strategy: Strategy, device: "torch.device") -> Iterator[None]:
    """Join the other processes of the run; nothing to do for `trainer.strategy=single`.

    An exception ends all of them; of those that fail at the same time, one tells people.

    Args:
        strategy: `trainer.strategy`.
        device: where the run computes; of several GPUs, each process takes its own.

    Raises:
        UserError: there are more processes than GPUs.
        ProcessFailed: another process has failed as well, and tells why.
    """
    if strategy is Strategy.single:
        yield
        return
    own = launch()
    _own.group, _own.speaks = _join(own, strategy, device), own.rank == 0
    try:
        yield
    except (ProcessFailed, ProcessLost) as error:
        _own.speaks = leads() and isinstance(error, ProcessLost)
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        failed = _call_out(_Failure(rank(), reason, out_of_memory=False))
        _own.speaks = min(failed, default=rank()) == rank()
        raise
    finally:
        _own.group = None
        _leave()


def count() -> int:
    """Return the number of processes of the run."""
    return 1 if _own.group is None else _own.group.launch.count


def rank() -> int:
    """Return the number of this process; 0 leads."""
    return 0 if _own.group is None else _own.group.launch.rank


def leads() -> bool:
    """Tell whether this process decides, writes and prints."""
    return rank() == 0


def speaks() -> bool:
    """Tell whether this process tells people of a failure; before they have joined, all of torchrun's fail alike."""
    return _own.speaks if _own.speaks is not None else launch().launcher != "torchrun" or launch().rank == 0


def wait_for_spokesman() -> None:
    """Wait to be ended with the run, where another process tells people why; return if nobody has."""
    if not speaks():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LAST_WORDS.total_seconds() * 3)


def share(rows: list[int]) -> list[int]:
    """Return the rows of a batch that are this process's: every n-th, so that all have rows of like length."""
    return rows[rank() :: count()]


def exchange(word: Any = None) -> list[Any]:
    """Return what each process says here, in their order; they wait for each other.

    Args:
        word: anything that can be pickled; tensors must be on the CPU, and their shapes may differ.

    Raises:
        OutOfMemory: in another process.
        ProcessFailed: another process has failed instead of coming here.
        ProcessLost: another process has ended.
    """
    if _own.group is None:
        return [word]
    import torch.distributed as dist

    words: list[Any] = [None] * _own.group.launch.count
    with _notice_loss():
        dist.all_gather_object(words, word, group=_own.group.channel)
    failed = next((said for said in words if isinstance(said, _Failure)), None)
    if failed is not None and failed.out_of_memory:
        raise OutOfMemory(failed.reason)
    if failed is not None:
        _stop_listening()
        raise ProcessFailed(f"process {failed.rank} of {len(words)} failed:\n{failed.reason}")
    return words


def led(action: Callable[[], T]) -> T:
    """Do something in the leading process alone, and return in all what it returned there."""
    return exchange(action() if leads() else None)[0]  # type: ignore[no-any-return]


def tell_out_of_memory(error: OutOfMemory) -> None:
    """Let the others know, at their next exchange, that this process has no memory left.

    Raises:
        UserError: the model is sharded: the others may be in the middle of a pass that needs this process.
    """
    if _own.group is None:
        return
    if _own.group.impatient is not None:
        raise UserError(
            f"Out of memory in process {rank()} ({error}): with trainer=fsdp the run cannot halve its batches itself; "
            "halve trainer.batch_size and double trainer.accumulate_grad_batches, which is the same effective batch."
        )
    _call_out(_Failure(rank(), str(error), out_of_memory=True))


def add_up(tensors: Iterable["Tensor"]) -> None:
    """Replace each tensor by its sum over all processes, on the device where it is."""
    import torch.distributed as dist

    with _notice_loss():
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def _as_typed(option: str) -> str:
    """Return the command line of this process as torchrun would take it."""
    own = "sentexp" in Path(sys.argv[0]).parts[-2:]  # not a notebook
    words = [word for word in sys.argv[1:] if not word.startswith(("trainer=", "trainer.strategy="))] if own else []
    return torchrun_command([*words, f"trainer={option}"])


def _join(own: Launch, strategy: Strategy, device: "torch.device") -> _Group:
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(_gpu(own, torch.cuda.device_count()))
    if own.launcher == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_NODELIST"])
        os.environ.setdefault("MASTER_ADDR", first)
        os.environ.setdefault("MASTER_PORT", str(15_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000))
        os.environ |= {"RANK": str(own.rank), "WORLD_SIZE": str(own.count)}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    channel = dist.new_group(backend="gloo", timeout=PATIENCE)  # words are on the CPU
    sharded = strategy is Strategy.fsdp
    return _Group(own, channel, dist.new_group(backend="gloo", timeout=LAST_WORDS) if sharded else None)


def _gpu(own: Launch, visible: int) -> int:
    """Return the number of the GPU that is this process's."""
    if own.launcher == "srun" and visible == 1:  # SLURM shows each task its own
        return 0
    require(
        own.local_rank < visible,
        f"Process {own.local_rank} of this machine (they count from 0) finds {visible} GPUs: start as many processes "
        "as there are GPUs (torchrun --nproc-per-node), or use trainer.accelerator=cpu.",
    )
    return own.local_rank


def _leave() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


@contextmanager
def _notice_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        _stop_listening()
        raise ProcessLost from error


def _call_out(failure: _Failure) -> list[int]:
    """Take part in the next exchange as one who fails; return the numbers of all who do."""
    import torch.distributed as dist

    assert _own.group is not None
    words: list[Any] = [None] * _own.group.launch.count
    try:
        if _own.group.impatient is not None:
            dist.barrier(_own.group.impatient)
        dist.all_gather_object(words, failure, group=_own.group.channel)
    except RuntimeError:  # the others are gone, or cannot come
        return []
    return [said.rank for said in words if isinstance(said, _Failure)]


def _stop_listening() -> None:
    """Ignore the launcher, which ends what is left of a run that has failed: this process first writes down why."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
