"""Steps and scores as CUDA graphs: one launch instead of a thousand.

At the lengths of sentences a GPU waits for Python, which launches its kernels one by one. A CUDA graph is a recording
of kernels over fixed memory: a batch is copied into the tensors that were recorded, and one launch repeats all that was
done with them. Batches have few shapes (`data.buckets`), each of which has a graph:

    until a shape is met again   computed as usual, which also allocates what is allocated once
    that batch                   recorded and replayed, which is compared with the usual way
    any further batch            replayed; one of another shape is recorded first

Learning rates are tensors that the schedule fills, and PyTorch's generator keeps its seed in one, so that dropout
differs between replays. What a graph cannot do is computed as usual.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sentexp.data.batch import Texts
from sentexp.data.packing import Packed
from sentexp.errors import first_line
from sentexp.models.fast.fusion_context import unfused
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.label_scorer import LabelScorer
from sentexp.models.sequence_classifier import Scores, SequenceClassifier
from sentexp.system.console import say

T = TypeVar("T")
ROUNDINGS = 16
"""How many units of rounding a replayed loss, or the whole of the gradients, may be off: kernels add in any order."""
MOST_SHAPES = 32
"""Graphs of a run at most: each takes up to half a second to record, and keeps its kernels in memory."""


class CudaGraph(Generic[T]):
    """A recording of work on fixed tensors.

    Args:
        work: what is recorded; nothing of it is computed yet. It returns tensors that each replay fills anew.
        pool: the memory that graphs share which are never replayed at once.
        generators: that draw random numbers, beside PyTorch's own.
    """

    def __init__(self, work: Callable[[], T], pool: Any, generators: Sequence[torch.Generator] = ()) -> None:
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = work()

    def replay(self) -> T:
        """Repeat the work, and return its outputs, which the next replay overwrites."""
        self._graph.replay()
        return self._outputs


class Recorded(Generic[T]):
    """What is done with a batch, recorded for batches of its shape."""

    def __init__(
        self, batch: Any, work: Callable[[Any], T], pool: Any, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._batch = _copied(batch)
        self._graph = CudaGraph(lambda: work(self._batch), pool, generators)

    def __call__(self, batch: Any) -> T:
        """Return the outputs for a batch, which the next one overwrites."""
        for fixed, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            fixed.copy_(given, non_blocking=True)
        return self._graph.replay()


class Graphs(Generic[T]):
    """Recordings of the same work, one for each shape of a batch.

    Args:
        work: takes a batch, and returns tensors.
        check: does the work for a batch in the usual way, before it is recorded for the first time, and returns a
            function that says what is wrong with the recording, if anything. Both leave everything as it was.
        generators: that draw random numbers, beside PyTorch's own.
    """

    def __init__(
        self,
        work: Callable[[Any], T],
        check: Callable[[Any], Callable[[Recorded[T]], str]],
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._work = work
        self._check = check
        self._generators = generators
        self._seen: set[Any] = set()
        self._recorded: dict[Any, Recorded[T]] = {}
        self._pool: Any = None
        self.fault = ""
        """Why nothing is recorded any more."""

    @property
    def count(self) -> int:
        """The number of recordings."""
        return len(self._recorded)

    @property
    def summary(self) -> str:
        """What became of it, for the record of a run."""
        return f"off: {self.fault}" if self.fault else f"{self.count} shapes recorded"

    def get(self, batch: Any) -> Recorded[T] | None:
        """Return the recording for batches of this shape; None where this one is to be computed as usual."""
        if self.fault:
            return None
        shape = shape_of(batch)
        if shape not in self._recorded:
            if self.count == MOST_SHAPES or (not self._recorded and shape not in self._seen):
                self._seen.add(shape)
                return None
            self._record(shape, batch)
        return self._recorded.get(shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._recorded.clear()
        self._seen.clear()
        self._pool = None

    def _record(self, shape: Any, batch: Any) -> None:
        try:
            compare = None if self._recorded else self._check(batch)
            if self._pool is None and torch.cuda.is_available():
                self._pool = torch.cuda.graph_pool_handle()
            recorded = Recorded(batch, self._work, self._pool, self._generators)
            self.fault = "" if compare is None else compare(recorded)
        except RuntimeError as error:  # that of CUDA, out of memory included
            self.fault = f"recording failed: {first_line(error)}"
        if self.fault:
            self.clear()
            say(f"CUDA graphs are off: {self.fault}. Kernels are launched one by one instead.")
        else:
            self._recorded[shape] = recorded


class ScoringGraphs:
    """Forward passes of an evaluation as graphs.

    Args:
        classifier: gives the scores of rows.
    """

    def __init__(self, classifier: SequenceClassifier | LabelScorer) -> None:
        self.graphs = Graphs(classifier, self._check)
        self._classifier = classifier

    def __call__(self, texts: Texts, cache: PrefixCache) -> Scores:
        """Return the scores of rows, which the next call may overwrite.

        Args:
            texts: rows.
            cache: of what all packed rows of an evaluation begin with: it is read with the first of them only.
        """
        layout = self._classifier.packed.recordable(texts)
        if layout is None or layout.prefix:
            return self._classifier(texts, cache)  # type: ignore[no-any-return]
        with unfused():
            recorded = self.graphs.get(layout)
            if recorded is not None:
                return recorded(layout)  # type: ignore[no-any-return]
        return self._classifier(layout)  # type: ignore[no-any-return]

    def _check(self, texts: Packed) -> Callable[[Recorded[Scores]], str]:
        usual = self._classifier(texts).logits.clone()

        def compare(recorded: Recorded[Scores]) -> str:
            is_same = is_near(recorded(texts).logits, usual, rounding_share())
            return "" if is_same else "the scores of a replayed pass would differ"

        return compare


def rounding_share() -> float:
    """Return the share that a replayed loss, or the whole of the gradients, may be off in the arithmetic of now."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    is_half = torch.is_autocast_enabled(device.type)
    return ROUNDINGS * torch.finfo(torch.get_autocast_dtype(device.type) if is_half else torch.float32).eps


def is_near(found: Tensor, expected: Tensor, limit: float) -> bool:
    """Tell whether the norm of a difference is within a share of the norm; not where one is NaN."""
    return bool((found - expected).norm() <= limit * expected.norm())


def shape_of(batch: Any) -> Any:
    """Return what batches have in common that one recording is for: the shapes of tensors, and all else as it is."""
    return tuple(part.shape if isinstance(part, Tensor) else part for part in _leaves(batch))


def _leaves(batch: Any) -> list[Any]:
    """Return the tensors and numbers of nested tuples."""
    if isinstance(batch, tuple):
        return [leaf for part in batch for leaf in _leaves(part)]
    return [batch]


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]


def _copied(batch: Any) -> Any:
    """Return nested tuples of the same kinds with copies of the tensors."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, tuple):
        parts = [_copied(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
