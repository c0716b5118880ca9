"""What frozen weights say about rows: each row is read once, whoever asks for it again.

Where the head alone trains, these are the features that it reads; below the first layer with an adapter, the hidden
states of every token.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from sentexp.data.batch import move
from sentexp.data.packing import Packed, Packer

MOST = 1 << 31
"""Bytes that are kept; rows beyond them are read each time."""


class RowCache:
    """Tensors of rows by their tokens, in memory of the CPU; runs over the same frozen weights can share them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, bytes], Tensor] = {}
        self._bytes = 0

    def get(self, kind: Hashable, packed: Packed, read: Callable[[Packed], Sequence[Tensor]]) -> list[Tensor]:
        """Return what `read` says about each row, on the device of the rows.

        Args:
            kind: what `read` computes, by a name.
            packed: rows of which the last token is read.
            read: computes it for rows that are not kept yet, from these and their prefix alone.
        """
        rows = _rows(packed)
        keys = [(kind, row.numpy().tobytes()) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        new: dict[tuple[Hashable, bytes], Tensor] = {}
        if missing:
            layout: Packed = Packer().score([row.tolist() for row in missing.values()], packed.prefix)
            with torch.no_grad():
                said = read(move(layout, packed.ids.device))
            new = {key: one.cpu().clone() for key, one in zip(missing, said, strict=True)}
            if self._bytes < MOST:
                self._kept |= new
                self._bytes += sum(one.nbytes for one in new.values())
        return [(new[key] if key in new else self._kept[key]).to(packed.ids.device) for key in keys]


def _rows(packed: Packed) -> list[Tensor]:
    """Return the token ids of each row, on the CPU."""
    ids, starts = packed.ids.cpu(), packed.starts.tolist()
    prefix, rest = ids[: packed.prefix], ids[packed.prefix :]
    return [torch.cat([prefix, rest[start:end]]) for start, end in itertools.pairwise(starts)]
