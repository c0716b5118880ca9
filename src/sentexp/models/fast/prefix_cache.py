"""The prefix that all rows of an evaluation share: its keys and values are computed once."""

from typing import NamedTuple

from torch import Tensor

from sentexp.data.packing import Packed


class PrefixKV(NamedTuple):
    """Keys and values of the tokens of a prefix, shape (prefix, key heads, width of a head)."""

    key: Tensor
    value: Tensor


class PrefixCache:
    """Keys and values of the prefix of all rows of an evaluation, by layer, computed with its first batch."""

    def __init__(self) -> None:
        self.layers: dict[int, PrefixKV] = {}

    def get(self, layer: int, key: Tensor, value: Tensor, prefix: int) -> PrefixKV | None:
        """Return the prefix of a layer; None for the first batch, whose own prefix is kept, and for rows without one.

        Args:
            layer: its number.
            key: of the batch, shape (tokens, key heads, width of a head).
            value: the same.
            prefix: how many tokens all rows share.
        """
        if not prefix:
            return None
        if layer in self.layers:
            return self.layers[layer]
        self.layers[layer] = PrefixKV(key[:prefix].detach().clone(), value[:prefix].detach().clone())
        return None


def within(packed: Packed, cache: PrefixCache | None) -> Packed:
    """Return the rows that are computed: without the prefix, if it is cached."""
    return packed.behind_prefix() if cache is not None and cache.layers else packed
