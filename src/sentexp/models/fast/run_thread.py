"""A run of a fused sweep in a thread of its own, which stops wherever it needs the frozen weights."""

import random
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sentexp.data.packing import Packed
from sentexp.models.fast import fusion_context
from sentexp.models.fast.fused_forward import ForwardInput
from sentexp.models.fast.fusion_context import ForwardOutput
from sentexp.models.fast.llama import LlamaLayers
from sentexp.models.fast.prefix_cache import PrefixCache


class Interrupted(BaseException):
    """The process is interrupted: a run ends with what it has saved (Lightning keeps a KeyboardInterrupt to itself)."""


@dataclass(slots=True)
class ForwardRequest:
    """A run wants hidden states."""

    input: ForwardInput
    trains: bool


@dataclass(slots=True)
class BackwardRequest:
    """A run has the gradient of hidden states that it was given."""

    output: ForwardOutput
    gradient: Tensor


class StepOutput(NamedTuple):
    """The answer to a `StepRequest`: the loss of the step; None where it was not done."""

    loss: Tensor | None


@dataclass(slots=True)
class StepRequest:
    """A run wants the whole optimizer step of a batch, as its `training.recorded_steps.TrainingGraphs` would do it."""

    graphs: Any
    batch: Any
    seed: int


@dataclass(slots=True)
class GlobalState:
    """A state of the process that each run must find as it left it."""

    save: Callable[[], Any]
    restore: Callable[[Any], None]


def _restore_warnings(filters: Any) -> None:
    warnings.filters, warnings.showwarning = filters
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _restore_stdout(stream: Any) -> None:
    sys.stdout = stream


GLOBAL_STATES = (
    GlobalState(torch.get_rng_state, torch.set_rng_state),
    GlobalState(np.random.get_state, np.random.set_state),
    GlobalState(random.getstate, random.setstate),
    GlobalState(lambda: (warnings.filters, warnings.showwarning), _restore_warnings),
    GlobalState(lambda: sys.stdout, _restore_stdout),
)


class RunThread:
    """A run that moves only between `resume` and its next request.

    Args:
        work: what it does; must not raise what is not to be lost.
        global_states: of the process, which it finds as it left them.
    """

    def __init__(self, work: Callable[[], None], global_states: tuple[GlobalState, ...]) -> None:
        self.request: ForwardRequest | BackwardRequest | StepRequest | None = None
        self.answer: Any = None
        self.ended = False
        self.error: BaseException | None = None
        self._global_states = global_states
        self._moves = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._saved = self._save()
        self._thread = threading.Thread(target=self._live, args=(work,), daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Let the run move until its next request, or its end."""
        outside = self._save()
        self._restore(self._saved)
        self._go.release()
        self._moves = True
        self._back.acquire()
        self._moves = False
        self._saved = self._save()
        self._restore(outside)
        if self.ended:
            self._thread.join()

    def interrupt(self) -> None:
        """End the run as one whose process is interrupted."""
        if self._moves:  # the interrupt came while `resume` waited
            self._back.acquire()
        while not self.ended:
            self.answer = Interrupted()
            self.resume()

    def yield_request(self, request: ForwardRequest | BackwardRequest | StepRequest) -> Any:
        """Wait, in the run's own thread, for the answer to a request.

        Raises:
            BaseException: the answer is that something failed, or the process is interrupted.
        """
        self.request = request
        self._back.release()
        self._go.acquire()
        answer, self.answer, self.request = self.answer, None, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def forward(self, layers: LlamaLayers, packed: Packed, cache: PrefixCache | None) -> ForwardOutput | Tensor:
        """Return the run's hidden states, of a pass that other runs share."""
        given = ForwardInput(layers, packed, cache, torch.initial_seed())
        return self.yield_request(ForwardRequest(given, layers.trains))  # type: ignore[no-any-return]

    def backward(self, output: ForwardOutput) -> None:
        """Turn the gradient of an output into those of the adapter."""
        if output.leaf.grad is not None:
            self.yield_request(BackwardRequest(output, output.leaf.grad))

    def step(self, graphs: Any, batch: Any) -> Tensor | None:
        """Return the loss of an optimizer step that was done together with other runs; None where it was not."""
        return self.yield_request(StepRequest(graphs, batch, torch.initial_seed())).loss  # type: ignore[no-any-return]

    def _live(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        fusion_context.enter(self)
        try:
            work()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self._back.release()

    def _save(self) -> list[Any]:
        return [state.save() for state in self._global_states]

    def _restore(self, values: list[Any]) -> None:
        for state, value in zip(self._global_states, values, strict=True):
            state.restore(value)
