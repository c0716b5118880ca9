"""Features of texts under a backbone that no training changes: each text is read once, whoever asks for it again."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from sentexp.data.batch import move
from sentexp.data.packing import Packed, Packer

MOST = 1 << 31
"""Bytes of features that are kept; texts beyond them are read each time."""


class FeatureCache:
    """The features of texts by their tokens, in float32; runs over the same frozen weights can share them."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}
        self._bytes = 0

    def get(self, packed: Packed, read: Callable[[Packed], Tensor]) -> Tensor:
        """Return the features of rows, shape (rows, hidden).

        Args:
            packed: rows of which the last token is read.
            read: computes the features of rows that are not kept yet.
        """
        rows = _rows(packed)
        keys = [row.numpy().tobytes() for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        new: dict[bytes, Tensor] = {}
        if missing:
            layout: Packed = Packer().score([row.tolist() for row in missing.values()], packed.prefix)
            with torch.no_grad():
                states = read(move(layout, packed.ids.device)).float().cpu()
            new = dict(zip(missing, states, strict=True))
            if self._bytes < MOST:
                self._kept |= new
                self._bytes += states.nbytes
        return torch.stack([new[key] if key in new else self._kept[key] for key in keys]).to(packed.ids.device)


def _rows(packed: Packed) -> list[Tensor]:
    """Return the token ids of each row, on the CPU."""
    ids, starts = packed.ids.cpu(), packed.starts.tolist()
    prefix, rest = ids[: packed.prefix], ids[packed.prefix :]
    return [torch.cat([prefix, rest[start:end]]) for start, end in itertools.pairwise(starts)]
