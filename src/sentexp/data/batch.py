"""Batches of rows as a model reads them: padded to the longest, or packed without padding."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sentexp.data.packing import Packed

T = TypeVar("T")


class Padded(NamedTuple):
    """Rows padded to the longest of them."""

    ids: Tensor
    """Token ids, shape (rows, tokens)."""
    mask: Tensor
    """1 at tokens and 0 at padding, same shape."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.ids)


Texts = Padded | Packed


class Batch(NamedTuple):
    """Rows of a split. Shapes, but for the texts: (rows,) or scalar.

    With several processes each holds a shard of the rows. A process without rows computes a dummy row (`counts` is
    False), as all must run the same number of forward passes. Nor do filler rows count, which are behind the others.
    """

    texts: Texts
    labels: Tensor
    rows: Tensor
    step_rows: Tensor
    """Scalar: the rows of the whole optimizer step, of which these may be a part."""
    counts: Tensor
    """Whether a row is of this process's shard, shape (rows,)."""
    batch_rows: int
    """The rows of the micro-batch in all processes."""


def move(batch: T, device: torch.device) -> T:
    """Return the tensors of a batch, or of texts, on a device; a GPU is not waited for."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")  # type: ignore[return-value]
    if isinstance(batch, tuple):
        return type(batch)(*(move(part, device) for part in batch))
    return batch


def pad(rows: list[list[int]], pad_id: int, side: str) -> Padded:
    """Return rows padded on `side` (left or right)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return Padded(ids, mask)


def target_tensor(targets: Any) -> Tensor:
    """Return class indices as integers, scores and sets of labels as float32 numbers, of the shape of the array."""
    tensor = torch.tensor(targets)
    return tensor.float() if tensor.is_floating_point() or tensor.dim() > 1 else tensor.long()
