"""Dropout from 16 random bits for each element.

On a CPU PyTorch draws a number for each, which takes four times as long: as long as a product with a small matrix.
"""

from typing import Any

import torch
from torch import Tensor

BITS = 16


def kept_at_random(like: Tensor, dropout: float) -> Tensor:
    """Return 1 for each element that is kept and 0 for the others, uint8, which is faster to convert than booleans.

    Args:
        like: gives the shape, and the device.
        dropout: probability that an element is left out, rounded to a multiple of 2^-16.
    """
    size = like.numel()
    words = torch.empty(-(-size * BITS // 64), dtype=torch.int64, device=like.device).random_(-(1 << 63), None)
    limit = _left_out(dropout) - (1 << BITS - 1)
    kept = torch.empty(size, dtype=torch.uint8, device=like.device)
    return torch.ge(words.view(torch.int16)[:size], limit, out=kept).view(like.shape)


def drop_rest(x: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    """Return the elements that are kept, scaled, and 0 for the others; all of them where `kept` is None."""
    return x if kept is None else (x * kept.to(x.dtype)).mul_(scale_of(dropout))


def scale_of(dropout: float) -> float:
    """Return what kept elements are multiplied by, so that their expectation stays."""
    return 1 / (1 - _left_out(dropout) / (1 << BITS))


def drop(x: Tensor, dropout: float) -> Tensor:
    """Return the elements that are kept, scaled, and 0 for the others."""
    out: Tensor = _Dropout.apply(x, dropout)  # type: ignore[no-untyped-call]
    return out


def _left_out(dropout: float) -> int:
    """Return how many of 2^16 elements are left out."""
    return round(dropout * (1 << BITS))


class _Dropout(torch.autograd.Function):
    """`drop`; what was left out is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        kept = kept_at_random(x, dropout)
        ctx.save_for_backward(kept)
        ctx.dropout = dropout
        return drop_rest(x, kept, dropout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return drop_rest(gradient, kept, ctx.dropout), None
