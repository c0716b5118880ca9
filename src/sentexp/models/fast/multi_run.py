"""Runs that read the same frozen weights together, though each knows nothing of the others.

Every run is a thread that does all that it would do alone: its own data order, optimizer, schedule, evaluations,
checkpoints and record. Only one of them moves at a time, so that nothing can race. Where a run reads the backbone it
stops, and when all of them have, the products with the frozen weights are done for all at once; the same for their
gradients. A run that fails, stops early or ends leaves the others as they are, and the next one takes its place.
"""

import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentexp.models.fast.llama import Reading, read_together
from sentexp.system.hardware import free_memory_gib, is_out_of_memory, release_memory, used_memory_gib

FIRST = 2
"""Runs at the beginning: what they take says how many more there is room for."""
ROOM = 0.5
"""The share of the free memory that more runs may take: the backward pass needs some as well."""

_thread = threading.local()


class Interrupted(BaseException):
    """The process is interrupted: a run ends with what it has saved (Lightning keeps a KeyboardInterrupt to itself)."""


@dataclass(slots=True)
class Read:
    """A run wants hidden states."""

    reading: Reading
    trains: bool


@dataclass(slots=True)
class Finish:
    """A run has the gradient of hidden states that it was given by a pass."""

    part: "Part"
    gradient: Tensor


@dataclass(slots=True)
class Part:
    """What a run was given by a training pass: its hidden states there, and a leaf that holds them in its own graph."""

    reading: Reading
    states: Tensor
    leaf: Tensor


@dataclass(slots=True)
class Switch:
    """A state of the process that each run must find as it left it."""

    get: Callable[[], Any]
    put: Callable[[Any], None]


def _put_warnings(filters: Any) -> None:
    warnings.filters, warnings.showwarning = filters
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _put_stdout(stream: Any) -> None:
    sys.stdout = stream


SWITCHES = (
    Switch(torch.get_rng_state, torch.set_rng_state),
    Switch(np.random.get_state, np.random.set_state),
    Switch(random.getstate, random.setstate),
    Switch(lambda: (warnings.filters, warnings.showwarning), _put_warnings),
    Switch(lambda: sys.stdout, _put_stdout),
)


class Member:
    """A run of a conductor, in a thread of its own.

    Args:
        work: what it does; must not raise what is not to be lost.
        conductor: that lets it move.
    """

    def __init__(self, work: Callable[[], None], conductor: "Conductor") -> None:
        self.request: Read | Finish | None = None
        self.answer: Any = None
        self.ended = False
        self.error: BaseException | None = None
        self._conductor = conductor
        self._go = threading.Semaphore(0)
        self._states = [switch.get() for switch in conductor.switches]
        self._thread = threading.Thread(target=self._live, args=(work,), daemon=True)
        self._thread.start()

    def move(self) -> None:
        """Let the run go on until it meets the others again, or ends."""
        outside = [switch.get() for switch in self._conductor.switches]
        self._put(self._states)
        self._go.release()
        self._conductor.moving = True
        self._conductor.back.acquire()
        self._conductor.moving = False
        self._states = [switch.get() for switch in self._conductor.switches]
        self._put(outside)
        if self.ended:
            self._thread.join()

    def meet(self, request: Read | Finish) -> Any:
        """Wait, in the run's own thread, for the answer to a request.

        Raises:
            BaseException: the answer is that something failed, or the process is interrupted.
        """
        self.request = request
        self._conductor.back.release()
        self._go.acquire()
        answer, self.answer, self.request = self.answer, None, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _live(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        _thread.member = self
        try:
            work()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self._conductor.back.release()

    def _put(self, states: list[Any]) -> None:
        for switch, state in zip(self._conductor.switches, states, strict=True):
            switch.put(state)


@dataclass
class Conductor:
    """Lets runs move one at a time, and answers them together.

    Args:
        device: where they compute.
        most: runs at once; measured memory may allow fewer.
        switches: states of the process beside those that every conductor switches.
    """

    device: torch.device
    most: int
    switches: tuple[Switch, ...] = ()
    together: int = 0
    """The most runs that a pass took."""
    moving: bool = False
    """Whether a run moves now."""
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        """Begin with few runs, in passes of any size."""
        self.switches = (*SWITCHES, *self.switches)
        self._room = min(FIRST, self.most)
        self._per_pass = self.most

    def play(self, works: list[Callable[[], None]]) -> None:
        """Do all the work, as many at once as there is room for.

        Raises:
            BaseException: what a run raised that it did not answer for itself, once all have ended.
        """
        left = list(works)
        members: list[Member] = []
        failed: list[BaseException] = []
        try:
            while left or members:
                while left and len(members) < self._room:
                    members.append(Member(left.pop(0), self))
                for member in members:
                    if member.request is None or member.answer is not None:
                        member.move()
                failed += [member.error for member in members if member.error is not None]
                members = [member for member in members if not member.ended]
                self._answer(members)
        except BaseException:
            self._interrupt(members)
            raise
        for error in failed:
            raise error

    def _interrupt(self, members: list[Member]) -> None:
        """Let every run end as one whose process is interrupted."""
        if self.moving:
            self.back.acquire()
        for member in members:
            while not member.ended:
                member.answer = Interrupted()
                member.move()

    def _answer(self, members: list[Member]) -> None:
        """Answer what all runs are waiting for: gradients first, so that runs meet again at their next batch."""
        finishing = [member for member in members if isinstance(member.request, Finish)]
        if finishing:
            self._backward(finishing)
            return
        for trains in (True, False):
            reading = [m for m in members if isinstance(m.request, Read) and m.request.trains is trains]
            for start in range(0, len(reading), self._per_pass):
                self._read(reading[start : start + self._per_pass], trains)

    def _read(self, members: list[Member], trains: bool) -> None:
        """Answer reads with one pass; with several smaller ones where memory runs out."""
        readings = [member.request.reading for member in members if isinstance(member.request, Read)]
        before = used_memory_gib(self.device)
        try:
            with torch.set_grad_enabled(trains):
                states = read_together(readings)
        except Exception as error:
            if len(members) == 1:
                members[0].answer = error  # it fails by itself, or finds smaller batches
                return
            parts = len(members) if not is_out_of_memory(error) else self._split(len(members))
            for part in range(parts):
                self._read(members[part::parts], trains)
            return
        self.together = max(self.together, len(members))
        if trains and self._room < self.most:
            self._make_room(len(members), used_memory_gib(self.device) - before)
        for member, reading, own in zip(members, readings, states, strict=True):
            member.answer = Part(reading, own, own.detach().requires_grad_(own.requires_grad)) if trains else own

    def _backward(self, members: list[Member]) -> None:
        """Give every run the gradients of its adapter."""
        finished = [member.request for member in members if isinstance(member.request, Finish)]
        for member in members:
            member.answer = True
        parameters = [parameter for one in finished for parameter in one.part.reading.layers.adapters.parameters]
        try:
            found = torch.autograd.grad(
                [one.part.states for one in finished], parameters, [one.gradient for one in finished]
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._split(len(members))
            self._backward_alone(members, finished)
            return
        _add(parameters, found)

    def _backward_alone(self, members: list[Member], finished: list[Finish]) -> None:
        """Give the gradients one by one: what the pass kept is lost, so each run reads once more."""
        for one in finished:
            one.part.states = one.part.states.detach()
        release_memory()
        for member, one in zip(members, finished, strict=True):
            parameters = one.part.reading.layers.adapters.parameters
            try:
                (states,) = read_together([one.part.reading])
                _add(parameters, torch.autograd.grad(states, parameters, one.gradient))
            except Exception as error:
                member.answer = error

    def _make_room(self, count: int, taken_gib: float) -> None:
        """Let more runs begin, if what these have taken leaves room."""
        each = max(taken_gib / count, 1e-3)
        self._room = min(self.most, max(self._room, count + int(ROOM * free_memory_gib(self.device) / each)))

    def _split(self, count: int) -> int:
        """Let passes take half as many runs from now on; return in how many this one goes on."""
        release_memory()
        self._per_pass = max(1, count // 2)
        return -(-count // self._per_pass)


def _add(parameters: list[torch.nn.Parameter], gradients: tuple[Tensor, ...]) -> None:
    """Add gradients to those of parameters, laid out as these: optimizers of one kernel read both in one go."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.contiguous() if parameter.grad is None else parameter.grad.add_(gradient)


def in_company() -> bool:
    """Tell whether this run has a conductor."""
    return getattr(_thread, "member", None) is not None


def read(reading: Reading) -> "Part | Tensor":
    """Return the hidden states of a run: with those of the others where it has any, else by itself.

    In training with others it is a part of a pass, whose gradient `finish` takes.
    """
    member: Member | None = getattr(_thread, "member", None)
    if member is None:
        return read_together([reading])[0]
    return member.meet(Read(reading, reading.layers.backbone.training and torch.is_grad_enabled()))  # type: ignore[no-any-return]


def finish(part: Part) -> None:
    """Turn the gradient of a part into those of the adapter."""
    if part.leaf.grad is not None:
        _thread.member.meet(Finish(part, part.leaf.grad))


@contextmanager
def apart() -> Iterator[None]:
    """Read without the others: what holds a lock that they wait for must not wait for them."""
    member, _thread.member = getattr(_thread, "member", None), None
    try:
        yield
    finally:
        _thread.member = member
