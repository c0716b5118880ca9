"""The product of grouped linear layers, frozen, with a LoRA or DoRA adapter, and its gradients.

W, shape (outputs, inputs), holds the weights of the modules of a group below each other, those of q, k and v for
instance. Module m has the rows A_m of A, shape (ranks, inputs), and a block of B, shape (outputs, ranks), scaled. Its
input is dropped by a mask M_m of its own, as in PEFT; without dropout, x M_m is x:

    u = [(x M_m) A_m^T, ...]                             (tokens, ranks)
    LoRA    y = x W^T + u B^T                            (tokens, outputs)
    DoRA    y = x W^T + c d - z,   z = [(x M_m) W_m^T, ...],   d = z + u B^T

c, shape (outputs,), is DoRA's magnitude over the norm of the row (see `stacked_lora`). Without dropout z is x W^T, and
y = c d. With the gradient g of y, and h = g for LoRA, h = c g for DoRA, the gradients are

    v = h B                                              (tokens, ranks)
    dA_m = v_m^T (x M_m)      dB = h^T u      dc = sum over tokens of g d
    dx = h W + v A                                       without dropout
    dx = g W + sum over m of (v_m A_m + (h - g)_m W_m) M_m      with dropout; h - g is 0 for LoRA
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class AdapterParts(NamedTuple):
    """How the modules of a group divide an adapter: `ranks` and `widths` are the rows of A and of W of each.

    `dropout` is that of the input of each module; its masks come from `generator`, or from torch's own. `tokens` are
    those that the adapter is for: all but in a pass of several runs.
    """

    ranks: list[int]
    widths: list[int]
    dropout: float
    generator: torch.Generator | None = None
    tokens: slice = slice(None)

    def masks(self, x: Tensor) -> list[Tensor]:
        """Return what the input of each module's adapter is multiplied by, as in PEFT; nothing without dropout."""
        kept = 1 - self.dropout
        if kept == 1:
            return []
        return [torch.empty_like(x).bernoulli_(kept, generator=self.generator).div_(kept) for _ in self.ranks]

    def restored(self, dropped: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Return masks from those that were kept as booleans."""
        return [mask.to(x.dtype).div_(1 - self.dropout) for mask in dropped]


class Adapter(NamedTuple):
    """The LoRA matrices of a group in the arithmetic of its products, and DoRA's c.

    `a` has the shape (ranks, inputs), `b` (outputs, ranks), `factor` (outputs,); it is None for LoRA.
    """

    a: Tensor
    b: Tensor
    factor: Tensor | None
    parts: AdapterParts

    def over(self, tokens: slice) -> "Adapter":
        """Return the same for some of the tokens only."""
        return self._replace(parts=self.parts._replace(tokens=tokens))


class Linear(NamedTuple):
    """A product: W, or what unpacks it where it is kept packed; the bias; the adapters.

    A single run has one adapter or none; in a pass of several runs each may have one, over its tokens, or there is one
    `BatchedAdapter` of all of them.
    """

    weight: Tensor | None
    unpack: Callable[[], Tensor] | None
    bias: Tensor | None
    adapters: Sequence[Any]

    def dense(self, like: Tensor) -> Tensor:
        """Return W, unpacked where that is needed, in the arithmetic of a tensor."""
        return dense_weight(self.weight, self.unpack, like)


def lora_linear(x: Tensor, linear: Linear) -> Tensor:
    """Return the outputs of a group side by side, shape (tokens, outputs).

    Args:
        x: shape (tokens, inputs).
        linear: the group, with one adapter at most.
    """
    if torch.compiler.is_compiling():  # which finds the derivative itself
        return _plain(x, linear)
    weight, unpack, bias, adapters = linear
    out: Tensor
    if adapters:
        out = _LoraLinear.apply(x, weight, unpack, bias, *adapters[0])  # type: ignore[no-untyped-call]
    else:
        out = _Frozen.apply(x, weight, unpack, bias)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor, linear: Linear) -> Tensor:
    """Return the same by plain operations."""
    dense = linear.dense(x)
    out = nn.functional.linear(x, dense, linear.bias)
    if not linear.adapters:
        return out
    adapter: Adapter = linear.adapters[0]
    a, b, factor, parts = adapter
    dropped = [nn.functional.dropout(x, parts.dropout) for _ in parts.ranks]
    low = torch.cat([part @ rows.mT for part, rows in zip(dropped, a.split(parts.ranks), strict=True)], 1)
    delta = low @ b.mT
    if factor is None:
        return out + delta
    frozen = torch.cat([part @ rows.mT for part, rows in zip(dropped, dense.split(parts.widths), strict=True)], 1)
    return out + factor * (frozen + delta) - frozen


class _Frozen(torch.autograd.Function):
    """x W^T; W is unpacked again in the backward pass instead of being kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, unpack: Any, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.unpack = unpack
        return nn.functional.linear(x, dense_weight(weight, unpack, x), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradient @ dense_weight(weight, ctx.unpack, gradient), None, None, None


class _LoraLinear(torch.autograd.Function):
    """The product with one adapter over all tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        unpack: Any,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        factor: Tensor | None,
        parts: AdapterParts,
    ) -> Tensor:
        masks = parts.masks(x)
        low = masked_product(x, masks, a, parts.ranks)
        dense = dense_weight(weight, unpack, x)
        direction = None
        if factor is None:
            out = nn.functional.linear(x, dense, bias).addmm_(low, b.mT)
        else:
            out = x @ dense.mT
            direction = add_dora(out, x, masks, dense, low, b, factor, parts)
            if bias is not None:
                out += bias
        ctx.save_for_backward(x, weight, a, b, factor, low, direction, *(mask.bool() for mask in masks))
        ctx.unpack, ctx.parts = unpack, parts
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, weight, a, b, factor, low, direction, *dropped = ctx.saved_tensors
        terms = AdapterGradients.of(gradient, b, factor, ctx.parts)
        masks = ctx.parts.restored(dropped, x)
        to_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dense = dense_weight(weight, ctx.unpack, gradient)
            if masks:
                to_x = gradient @ dense
                to_x += terms.to_masked_input(a, dense, masks)
            else:
                to_x = (terms.inner @ dense).addmm_(terms.low, a)
        to_adapter = terms.to_a(x, masks), terms.to_b(low), terms.to_factor(direction, factor)
        return to_x, None, None, None, *to_adapter, None


class AdapterGradients(NamedTuple):
    """What the gradients of an adapter are made of, at its tokens: g, h and v of the module's docstring."""

    gradient: Tensor
    inner: Tensor
    low: Tensor
    parts: AdapterParts
    is_dora: bool

    @classmethod
    def of(cls, gradient: Tensor, b: Tensor, factor: Tensor | None, parts: AdapterParts) -> "AdapterGradients":
        """Return them for the gradient of the outputs, shape (tokens, outputs)."""
        inner = gradient if factor is None else (gradient * factor).to(gradient.dtype)
        return cls(gradient, inner, inner @ b, parts, factor is not None)

    def to_a(self, x: Tensor, masks: list[Tensor]) -> Tensor:
        """Return dA, shape (ranks, inputs)."""
        if not masks:
            return self.low.mT @ x
        lows = self.low.split(self.parts.ranks, 1)
        return torch.cat([low.mT @ (x * mask) for low, mask in zip(lows, masks, strict=True)])

    def to_b(self, low: Tensor) -> Tensor:
        """Return dB, shape (outputs, ranks); `low` is u."""
        return (low.mT @ self.inner).mT

    def to_factor(self, direction: Tensor | None, factor: Tensor | None) -> Tensor | None:
        """Return dc, shape (outputs,); `direction` is d."""
        if direction is None or factor is None:
            return None
        return (self.gradient * direction).sum(0).to(factor)

    def to_masked_input(self, a: Tensor, dense: Tensor, masks: list[Tensor]) -> Tensor:
        """Return what of dx comes through the masks, shape (tokens, inputs)."""
        lows, rows_of_a = self.low.split(self.parts.ranks, 1), a.split(self.parts.ranks)
        terms = [low @ rows for low, rows in zip(lows, rows_of_a, strict=True)]
        if self.is_dora:
            rests = (self.inner - self.gradient).split(self.parts.widths, 1)
            for term, rest, rows in zip(terms, rests, dense.split(self.parts.widths), strict=True):
                term.addmm_(rest, rows)
        masked: Any = sum(term * mask for term, mask in zip(terms, masks, strict=True))
        return masked  # type: ignore[no-any-return]


def masked_product(x: Tensor, masks: list[Tensor], matrix: Tensor, heights: list[int]) -> Tensor:
    """Return [(x M_m) P_m^T, ...], shape (tokens, rows of P), where P_m are so many rows of a matrix P."""
    if not masks:
        return nn.functional.linear(x, matrix)
    return torch.cat([(x * mask) @ rows.mT for mask, rows in zip(masks, matrix.split(heights), strict=True)], 1)


def add_dora(
    out: Tensor,
    x: Tensor,
    masks: list[Tensor],
    dense: Tensor,
    low: Tensor,
    b: Tensor,
    factor: Tensor,
    parts: AdapterParts,
) -> Tensor:
    """Add c d - z to x W^T in place, and return d, shape (tokens, outputs)."""
    frozen = masked_product(x, masks, dense, parts.widths) if masks else out
    direction = torch.addmm(frozen, low, b.mT)
    out += direction * factor - frozen
    return direction


def dense_weight(weight: Tensor | None, unpack: Any, like: Tensor) -> Tensor:
    """Return W, unpacked where that is needed, in the arithmetic of a tensor."""
    dense: Tensor = unpack().to(like.dtype) if weight is None else weight
    return dense
