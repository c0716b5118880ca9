"""What a model says about a split, batch after batch, in all processes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentexp.data.batch import Batch
from sentexp.distributed import processes
from sentexp.models.sequence_classifier import Scores


class Evaluation(NamedTuple):
    """The outputs of a model for a split, in the order of its rows; see `Scores`. `generated` are tokens of answers."""

    targets: Tensor
    logits: Tensor
    outside: Tensor | None = None
    first_token: Tensor | None = None
    irregular: Tensor | None = None
    generated: Tensor | None = None


class Outputs:
    """The outputs for the batches of a split so far. They stay where they were computed: no batch waits for a copy."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor | None, ...]] = []

    def clear(self) -> None:
        """Keep nothing."""
        self._parts.clear()

    def add(self, batch: Batch, scores: Scores, generated: Tensor | None = None) -> None:
        """Keep copies of the outputs for a batch, whose tensors may be used again."""
        columns = (batch.counts, batch.rows, batch.labels, *scores, generated)
        self._parts.append(tuple(None if column is None else column.clone() for column in columns))

    def take(self) -> Evaluation:
        """Return what all processes have kept, in the order of the split, and keep nothing."""
        counts, *columns = (_concatenated(column) for column in zip(*self._parts, strict=True))
        self.clear()
        assert counts is not None
        mine = [None if column is None else column[counts].cpu() for column in columns]
        gathered = [_concatenated(column) for column in zip(*processes.all_gather(mine), strict=True)]
        assert gathered[0] is not None
        order = gathered[0].argsort()
        ordered: list[Any] = [None if column is None else column[order] for column in gathered[1:]]
        return Evaluation(*ordered)


def _concatenated(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """Return the parts one after the other; None where there are none."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None
