"""Runs that read the same frozen weights together, though none knows of the others.

Every run is a thread that does all that it would do alone: its own data order, optimizer, schedule, evaluations,
checkpoints and record. Only one thread moves at a time, so that nothing can race. Where a run needs the backbone it
stops with a request. When all runs have stopped, one pass answers all requests:

    RunScheduler              RunThread 0                      RunThread 1
    resume ------------------> next batch, model(batch)
           <------------------ ForwardRequest
    resume ---------------------------------------------------> next batch, model(batch)
           <--------------------------------------------------- ForwardRequest
    fused_forward: one product with each frozen weight, over the tokens of both
    resume ------------------> loss.backward() to the leaf
           <------------------ BackwardRequest
    resume ---------------------------------------------------> loss.backward() to the leaf
           <--------------------------------------------------- BackwardRequest
    torch.autograd.grad: one pass back, each adapter gets its own gradient
    resume ------------------> optimizer.step(), next batch, ...

On a GPU a run first asks for the whole step (`StepRequest`), which `fused_steps` may replay for all of them. A run that
fails, stops early or ends leaves the others as they are, and the next one takes its place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sentexp.models.fast.fused_forward import fused_forward
from sentexp.models.fast.fused_steps import FusedSteps
from sentexp.models.fast.fusion_context import ForwardOutput
from sentexp.models.fast.run_thread import (
    GLOBAL_STATES,
    BackwardRequest,
    ForwardRequest,
    GlobalState,
    RunThread,
    StepRequest,
)
from sentexp.system.memory import free_memory_gib, is_out_of_memory, release_memory, used_memory_gib

FIRST = 2
"""Runs at the beginning: what they take says how many more there is room for."""
ROOM = 0.5
"""The share of the free memory that more runs may take: the backward pass needs some as well."""


@dataclass
class RunScheduler:
    """Lets runs move one at a time, and answers their requests together.

    Args:
        device: where they compute.
        most: runs at once; measured memory may allow fewer.
        global_states: of the process, beside those that every scheduler saves and restores.
        share: of the free memory that is this process's.
    """

    device: torch.device
    most: int
    global_states: tuple[GlobalState, ...] = ()
    share: float = 1.0
    largest_pass: int = 0
    """The most runs that a pass took."""

    def __post_init__(self) -> None:
        """Begin with few runs, in passes of any size."""
        self.global_states = (*GLOBAL_STATES, *self.global_states)
        self._room = min(FIRST, self.most)
        self._per_pass = self.most
        self._can_begin = 0
        self._steps = FusedSteps()

    def run_all(self, works: list[Callable[[], None]]) -> None:
        """Do all the work, as many at once as there is room for.

        Raises:
            BaseException: what a run raised that it did not answer for itself, once all have ended.
        """
        waiting = list(works)
        runs: list[RunThread] = []
        errors: list[BaseException] = []
        try:
            while waiting or runs:
                while waiting and len(runs) < self._room:
                    runs.append(RunThread(waiting.pop(0), self.global_states))
                for run in runs:
                    if run.request is None or run.answer is not None:
                        run.resume()
                errors += [run.error for run in runs if run.error is not None]
                runs = [run for run in runs if not run.ended]
                self._steps.keep(runs)
                self._can_begin = len(runs) + len(waiting)
                self._answer(runs)
        except BaseException:
            for run in runs:
                run.interrupt()
            raise
        for error in errors:
            raise error

    def _answer(self, runs: list[RunThread]) -> None:
        """Answer what all runs are waiting for: gradients first, then steps, so that runs meet at their next pass."""
        with_gradients = [run for run in runs if isinstance(run.request, BackwardRequest)]
        if with_gradients:
            self._backward(with_gradients)
            return
        steps = [run for run in runs if isinstance(run.request, StepRequest)]
        if steps:
            self._steps.answer(steps)
            self.largest_pass = max(self.largest_pass, self._steps.largest)
            return
        for trains in (True, False):
            alike = [run for run in runs if isinstance(run.request, ForwardRequest) and run.request.trains is trains]
            for start in range(0, len(alike), self._per_pass):
                self._forward(alike[start : start + self._per_pass], trains)

    def _forward(self, runs: list[RunThread], trains: bool) -> None:
        """Answer requests with one pass; with several smaller ones where memory runs out."""
        inputs = [run.request.input for run in runs if isinstance(run.request, ForwardRequest)]
        before = used_memory_gib(self.device)
        try:
            with torch.set_grad_enabled(trains):
                states_of_runs = fused_forward(inputs)
        except Exception as error:
            if len(runs) == 1:
                runs[0].answer = error  # it fails by itself, or finds smaller batches
                return
            parts = len(runs) if not is_out_of_memory(error) else self._split(len(runs))
            for part in range(parts):
                self._forward(runs[part::parts], trains)
            return
        self.largest_pass = max(self.largest_pass, len(runs))
        if trains and self._room < self.most:
            room = self._room
            self._make_room(len(runs), used_memory_gib(self.device) - before)
            if min(self._room, self._can_begin) > max(room, len(runs)):
                return  # others begin, and all read their first batches together
        for run, given, states in zip(runs, inputs, states_of_runs, strict=True):
            leaf = states.detach().requires_grad_(states.requires_grad)
            run.answer = ForwardOutput(given, states, leaf) if trains else states

    def _backward(self, runs: list[RunThread]) -> None:
        """Give every run the gradients of its adapter."""
        requests = [run.request for run in runs if isinstance(run.request, BackwardRequest)]
        for run in runs:
            run.answer = True
        parameters = [parameter for request in requests for parameter in _parameters(request)]
        try:
            gradients = torch.autograd.grad(
                [request.output.states for request in requests], parameters, [request.gradient for request in requests]
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._split(len(runs))
            self._backward_one_by_one(runs, requests)
            return
        _add(parameters, gradients)

    def _backward_one_by_one(self, runs: list[RunThread], requests: list[BackwardRequest]) -> None:
        """Give the gradients one by one: what the pass kept is lost, so each run's forward pass is done again."""
        for request in requests:
            request.output.states = request.output.states.detach()
        release_memory()
        for run, request in zip(runs, requests, strict=True):
            parameters = _parameters(request)
            try:
                (states,) = fused_forward([request.output.input])
                _add(parameters, torch.autograd.grad(states, parameters, request.gradient))
            except Exception as error:
                run.answer = error

    def _make_room(self, count: int, taken_gib: float) -> None:
        """Let more runs begin, if what these have taken leaves room."""
        each = max(taken_gib / count, 1e-3)
        self._room = min(
            self.most, max(self._room, count + int(ROOM * self.share * free_memory_gib(self.device) / each))
        )

    def _split(self, count: int) -> int:
        """Let passes take half as many runs from now on; return in how many this one continues."""
        release_memory()
        self._per_pass = max(1, count // 2)
        return -(-count // self._per_pass)


def _parameters(request: BackwardRequest) -> list[torch.nn.Parameter]:
    """Return those of the run's adapter."""
    return request.output.input.layers.adapters.parameters


def _add(parameters: list[torch.nn.Parameter], gradients: tuple[Tensor, ...]) -> None:
    """Add gradients to those of parameters, laid out as these: optimizers of one kernel read both in one go."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.contiguous() if parameter.grad is None else parameter.grad.add_(gradient)
