"""The processes of one run, and what they tell each other. Process 0 is the main process.

All of them go through the same protocol on their own share of the rows. The main process alone decides, writes and
prints: a function is marked `main_process_only` where the others wait for what it returns, and `main_process_writes`
where they continue. Every message between processes is an `all_gather`; in it a process that cannot continue says so,
and the others stop as well instead of waiting for it. torch is imported where it is used: the command line imports this
module.
"""

import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sentexp.config import Strategy
from sentexp.distributed.group import SHUTDOWN_GRACE, Group, join, leave
from sentexp.distributed.launch import current_launch
from sentexp.errors import OutOfMemory, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


class ProcessFailed(Exception):
    """Another process of the run has failed; it tells why."""


class ProcessLost(UserError):
    """Another process of the run has ended without a message."""

    def __init__(self) -> None:
        super().__init__(
            "A process of this run was killed, or its machine cannot be reached: the same command resumes from the "
            "last checkpoint."
        )


@dataclass(frozen=True, slots=True)
class _Failure:
    """The message of a process that cannot continue."""

    rank: int
    reason: str
    out_of_memory: bool


class _State:
    """What this process is part of; without a group it is alone. `reports_errors` is known once it has joined.

    `in_main` is true while the main process does something that the others wait for: no messages are sent meanwhile.
    """

    group: Group | None = None
    reports_errors: bool | None = None
    in_main: bool = False


_state = _State()


@contextmanager
def process_group(strategy: Strategy, device: "torch.device") -> Iterator[None]:
    """Join the other processes of the run; nothing to do for `trainer.strategy=single`.

    An exception ends all of them; of those that fail at the same time, one reports the error.

    Args:
        strategy: `trainer.strategy`.
        device: where the run computes; of several GPUs, each process takes its own.

    Raises:
        UserError: there are more processes than GPUs.
        ProcessFailed: another process has failed as well, and reports why.
    """
    if strategy is Strategy.single:
        yield
        return
    launch = current_launch()
    _state.group, _state.reports_errors, _state.in_main = join(launch, strategy, device), launch.rank == 0, False
    try:
        yield
    except (ProcessFailed, ProcessLost) as error:
        _state.reports_errors = is_main() and isinstance(error, ProcessLost)
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        failed = _broadcast_failure(_Failure(rank(), reason, out_of_memory=False))
        _state.reports_errors = min(failed, default=rank()) == rank()
        raise
    finally:
        _state.group = None
        leave()


def world_size() -> int:
    """Return the number of processes of the run."""
    return 1 if _state.group is None else _state.group.launch.world_size


def rank() -> int:
    """Return the number of this process; 0 is the main process."""
    return 0 if _state.group is None else _state.group.launch.rank


def is_main() -> bool:
    """Tell whether this process decides, writes and prints."""
    return rank() == 0


def reports_errors() -> bool:
    """Tell whether this process reports a failure; before they have joined, all of torchrun's fail alike."""
    if _state.reports_errors is not None:
        return _state.reports_errors
    return current_launch().launcher != "torchrun" or current_launch().rank == 0


def wait_for_error_reporter() -> None:
    """Wait to be ended with the run, where another process reports the error; return if none has."""
    if not reports_errors():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SHUTDOWN_GRACE.total_seconds() * 3)


def shard_rows(rows: list[int]) -> list[int]:
    """Return the rows of a batch that are this process's: every n-th, so that all have rows of like length."""
    return rows[rank() :: world_size()]


def all_gather(message: Any = None) -> list[Any]:
    """Return the message of each process, in their order; they wait for each other.

    Args:
        message: anything that can be pickled; tensors must be on the CPU, and their shapes may differ.

    Raises:
        OutOfMemory: in another process.
        ProcessFailed: another process has failed instead of coming here.
        ProcessLost: another process has ended.
    """
    if _state.group is None:
        return [message]
    import torch.distributed as dist

    assert not _state.in_main, "the other processes wait elsewhere"
    messages: list[Any] = [None] * _state.group.launch.world_size
    with _notice_loss():
        dist.all_gather_object(messages, message, group=_state.group.channel)
    failure = next((item for item in messages if isinstance(item, _Failure)), None)
    if failure is not None and failure.out_of_memory:
        raise OutOfMemory(failure.reason)
    if failure is not None:
        _stop_listening()
        raise ProcessFailed(f"process {failure.rank} of {len(messages)} failed:\n{failure.reason}")
    return messages


def run_on_main(action: Callable[[], T]) -> T:
    """Do something in the main process alone, and return in all processes what it returned there."""
    if _state.group is None or _state.in_main:
        return action()
    value = None
    if is_main():
        _state.in_main = True
        try:
            value = action()
        finally:
            _state.in_main = False
    return all_gather(value)[0]  # type: ignore[no-any-return]


def main_process_only(function: Callable[P, T]) -> Callable[P, T]:
    """Let the main process alone call a function; all return what it returned there, and wait for it.

    All processes must call it equally often. Called by another such function, it is an ordinary one.
    """

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        return run_on_main(lambda: function(*arguments, **options))

    return call


def main_process_writes(function: Callable[P, None]) -> Callable[P, None]:
    """Let the main process alone call a function that returns nothing; the others continue without waiting.

    If it fails there, the others stop at their next message.
    """

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> None:
        if is_main():
            function(*arguments, **options)

    return call


def tell_out_of_memory(error: OutOfMemory) -> None:
    """Let the others know, in their next message, that this process has no memory left.

    Raises:
        UserError: the model is sharded: the others may be in the middle of a pass that needs this process.
    """
    if _state.group is None:
        return
    if _state.group.impatient is not None:
        raise UserError(
            f"Out of memory in process {rank()} ({error}): with trainer=fsdp the run cannot halve its batches itself; "
            "halve trainer.batch_size and double trainer.accumulate_grad_batches, which is the same effective batch."
        )
    _broadcast_failure(_Failure(rank(), str(error), out_of_memory=True))


def all_reduce_sum(tensors: Iterable["Tensor"]) -> None:
    """Replace each tensor by its sum over all processes, on the device where it is."""
    import torch.distributed as dist

    with _notice_loss():
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


@contextmanager
def _notice_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        _stop_listening()
        raise ProcessLost from error


def _broadcast_failure(failure: _Failure) -> list[int]:
    """Send a failure as this process's next message; return the ranks of all processes that do."""
    import torch.distributed as dist

    assert _state.group is not None
    messages: list[Any] = [None] * _state.group.launch.world_size
    try:
        if _state.group.impatient is not None:
            dist.barrier(_state.group.impatient)
        dist.all_gather_object(messages, failure, group=_state.group.channel)
    except RuntimeError:  # the others are gone, or cannot come
        return []
    return [item.rank for item in messages if isinstance(item, _Failure)]


def _stop_listening() -> None:
    """Ignore the launcher, which ends what is left of a run that has failed: this process first writes down why."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
