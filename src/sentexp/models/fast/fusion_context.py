"""Whether the current thread is a run of a fused sweep. A run by itself meets nothing else of fusing than this."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from sentexp.data.packing import Packed
from sentexp.models.fast.llama import LlamaLayers
from sentexp.models.fast.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from sentexp.models.fast.fused_forward import ForwardInput

_context = threading.local()


@dataclass(slots=True)
class ForwardOutput:
    """A run's hidden states in the graph that it shares with others, and a leaf of the run's own that holds them.

    The backward pass of the loss ends at the leaf, whose gradient is then handed over to the shared graph.
    """

    input: "ForwardInput"
    states: Tensor
    leaf: Tensor


class FusedRun(Protocol):
    """A run of a fused sweep, as the model sees it."""

    def forward(self, layers: LlamaLayers, packed: Packed, cache: PrefixCache | None) -> ForwardOutput | Tensor:
        """Return the hidden states that are read: in training with what `backward` needs of the pass."""

    def backward(self, output: ForwardOutput) -> None:
        """Turn the gradient of the leaf into those of the adapter."""

    def step(self, graphs: Any, batch: Any) -> Tensor | None:
        """Do the whole optimizer step of a batch together with other runs, and return its loss; None: it was not done.

        Args:
            graphs: the run's own `training.recorded_steps.TrainingGraphs`.
            batch: as it is recorded.
        """


def fused_run() -> FusedRun | None:
    """Return the run of this thread; None where it is by itself."""
    return getattr(_context, "run", None)


def enter(run: FusedRun) -> None:
    """Let this thread be that of a run of a fused sweep."""
    _context.run = run


class _Reading:
    """A run whose hidden states are known."""

    def __init__(self, states: Tensor) -> None:
        self._states: Tensor | None = states

    def forward(self, layers: LlamaLayers, packed: Packed, cache: PrefixCache | None) -> Tensor:
        del layers, packed, cache
        states, self._states = self._states, None
        if states is None:
            raise RuntimeError("a loss reads its rows more than once")
        return states


@contextmanager
def reading(states: Tensor) -> Iterator[None]:
    """Let the model give these hidden states, which a pass of several runs has found, once."""
    run, _context.run = fused_run(), _Reading(states)
    try:
        yield
    finally:
        _context.run = run


@contextmanager
def unfused() -> Iterator[None]:
    """Compute without the other runs: what holds a lock that they wait for must not wait for them."""
    run, _context.run = fused_run(), None
    try:
        yield
    finally:
        _context.run = run
