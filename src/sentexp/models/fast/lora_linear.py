"""Products with the frozen weights of grouped layers and the adapters of one run or several, and their gradients.

    y = x W^T + (x A^T) B^T

where DoRA multiplies the outputs by c (see `grouped`). With dropout it is only the adapter, and what c adds to the
frozen product, that read the dropped input, as in PEFT.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Adapter(NamedTuple):
    """The LoRA matrices of a group in the arithmetic of its products, and how their input is dropped.

    `a` has the shape (ranks, inputs), `b` (outputs, ranks). `dropout` is that of the input of each module, whose ranks
    are `ranks` and whose widths `widths`; its masks come from `generator`, or from torch's own. `factor` is DoRA's c,
    shape (outputs,), or None.
    """

    a: Tensor
    b: Tensor
    ranks: list[int]
    widths: list[int]
    dropout: float
    generator: torch.Generator | None
    factor: Tensor | None = None


class Linear(NamedTuple):
    """A product: W, or what unpacks it where it is kept in 4 bits; the bias; the adapters.

    Each run that shares the product has its adapter here, or None where it adapts none of these layers.
    """

    weight: Tensor | None
    unpack: Callable[[], Tensor] | None
    bias: Tensor | None
    adapters: list[Adapter | None]


def multiply(x: Tensor, linear: Linear, spans: Sequence[slice]) -> Tensor:
    """Return the outputs of a group side by side, shape (tokens, outputs).

    Args:
        x: shape (tokens, inputs).
        linear: the group, with an adapter for each run.
        spans: the tokens of each run.
    """
    weight, unpack, bias, adapters = linear
    if torch.compiler.is_compiling():  # which finds the derivative itself
        return _plain(x, linear)
    out: Tensor
    own = [(span, adapter) for span, adapter in zip(spans, adapters, strict=True) if adapter is not None]
    if not own:
        out = _Frozen.apply(x, weight, unpack, bias)  # type: ignore[no-untyped-call]
        return out
    members = [_Member(span, *adapter[2:-1]) for span, adapter in own]
    matrices = [given for _, adapter in own for given in (adapter.a, adapter.b, adapter.factor)]
    out = _Grouped.apply(x, weight, unpack, bias, members, *matrices)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor, linear: Linear) -> Tensor:
    """Return the same by plain operations, for one run."""
    weight, unpack, bias, (adapter,) = linear
    dense = _dense(weight, unpack, x)
    out = nn.functional.linear(x, dense, bias)
    if adapter is None:
        return out
    read = [nn.functional.dropout(x, adapter.dropout) for _ in adapter.ranks]
    low = torch.cat([own @ part.mT for own, part in zip(read, adapter.a.split(adapter.ranks), strict=True)], 1)
    delta = low @ adapter.b.mT
    if adapter.factor is None:
        return out + delta
    frozen = torch.cat([own @ part.mT for own, part in zip(read, dense.split(adapter.widths), strict=True)], 1)
    return out + adapter.factor * (frozen + delta) - frozen


class _Frozen(torch.autograd.Function):
    """x W^T; W is unpacked again in the backward pass instead of being kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, unpack: Any, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.unpack = unpack
        return nn.functional.linear(x, _dense(weight, unpack, x), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradient @ _dense(weight, ctx.unpack, gradient), None, None, None


class _Member(NamedTuple):
    """A run in a product: its tokens, and how the input of its adapter is dropped (see `Adapter`)."""

    span: slice
    ranks: list[int]
    widths: list[int]
    dropout: float
    generator: torch.Generator | None

    def masks(self, x: Tensor) -> list[Tensor]:
        """Return what the input of each module's adapter is multiplied by, as in PEFT; nothing without dropout."""
        kept = 1 - self.dropout
        if kept == 1:
            return []
        return [torch.empty_like(x).bernoulli_(kept, generator=self.generator).div_(kept) for _ in self.ranks]


class _Grouped(torch.autograd.Function):
    """x W^T over the tokens of all runs, and (x A^T) B^T over those of each; A reads x through masks, if any.

    With z = x W^T, read through the masks as well, and y = z + (x A^T) B^T, DoRA's outputs are x W^T + c y - z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        unpack: Any,
        bias: Tensor | None,
        members: list[_Member],
        *matrices: Tensor,
    ) -> Tensor:
        all_a, all_b, factors = matrices[::3], matrices[1::3], matrices[2::3]
        masks = [member.masks(x[member.span]) for member in members]
        lows = [
            _through(x[member.span], own, a, member.ranks) for member, own, a in zip(members, masks, all_a, strict=True)
        ]
        dense = _dense(weight, unpack, x)
        directions: list[Tensor | None] = [None] * len(members)
        if len(members) == 1 and len(lows[0]) == len(x) and factors[0] is None:
            out = torch.addmm(nn.functional.linear(lows[0], all_b[0], bias), x, dense.mT)  # added by the large product
        else:
            out = x @ dense.mT
            for n, (member, own, low, b, factor) in enumerate(zip(members, masks, lows, all_b, factors, strict=True)):
                there = out[member.span]
                if factor is None:
                    there.addmm_(low, b.mT)
                    continue
                frozen = _through(x[member.span], own, dense, member.widths) if own else there
                directions[n] = direction = torch.addmm(frozen, low, b.mT)
                there += direction * factor - frozen
            if bias is not None:
                out += bias
        dropped = [mask.bool() for own in masks for mask in own]
        ctx.save_for_backward(x, weight, *matrices, *lows, *directions, *dropped)
        ctx.unpack, ctx.members = unpack, members
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        members, count = ctx.members, len(ctx.members)
        x, weight, *rest = ctx.saved_tensors
        all_a, all_b, factors = (rest[start : 3 * count : 3] for start in range(3))
        lows, directions, dropped = rest[3 * count : 4 * count], rest[4 * count : 5 * count], iter(rest[5 * count :])
        inner = [  # the gradient of c y by y
            gradient[member.span] if factor is None else (gradient[member.span] * factor).to(gradient.dtype)
            for member, factor in zip(members, factors, strict=True)
        ]
        lowers = [own @ b for own, b in zip(inner, all_b, strict=True)]
        before: Tensor | None = None
        dense: Tensor | None = None
        alone = count == 1 and len(lowers[0]) == len(x) and not members[0].dropout
        if ctx.needs_input_grad[0]:
            dense = _dense(weight, ctx.unpack, gradient)
            if alone:
                before = torch.addmm(lowers[0] @ all_a[0], inner[0], dense)
            else:
                before = _frozen_gradient(gradient, members, inner, factors) @ dense
        own: list[Tensor | None] = []
        for n, member in enumerate(members):
            read, low, lower, a = x[member.span], lows[n], lowers[n], all_a[n]
            if member.dropout:
                masks = [next(dropped).to(x.dtype).div_(1 - member.dropout) for _ in member.ranks]
                parts = lower.split(member.ranks, 1)
                own.append(torch.cat([part.mT @ (read * mask) for part, mask in zip(parts, masks, strict=True)]))
                if before is not None:
                    back = [part @ rows for part, rows in zip(parts, a.split(member.ranks), strict=True)]
                    if factors[n] is not None and dense is not None:
                        more = (inner[n] - gradient[member.span]).split(member.widths, 1)
                        for whole, part, rows in zip(back, more, dense.split(member.widths), strict=True):
                            whole.addmm_(part, rows)
                    before[member.span] += sum(whole * mask for whole, mask in zip(back, masks, strict=True))
            else:
                own.append(lower.mT @ read)
                if before is not None and not alone:
                    before[member.span].addmm_(lower, a)
            own.append((low.mT @ inner[n]).mT)
            own.append(None if factors[n] is None else (gradient[member.span] * directions[n]).sum(0).to(factors[n]))
        return before, None, None, None, None, *own


def _through(x: Tensor, masks: list[Tensor], matrix: Tensor, heights: list[int]) -> Tensor:
    """Return x M^T, in which each part of M, of so many rows, reads x through its mask."""
    if not masks:
        return nn.functional.linear(x, matrix)
    return torch.cat([(x * mask) @ part.mT for mask, part in zip(masks, matrix.split(heights), strict=True)], 1)


def _frozen_gradient(
    gradient: Tensor, members: list[_Member], inner: list[Tensor], factors: list[Tensor | None]
) -> Tensor:
    """Return the gradient of x W^T: that of the outputs, scaled where c scales them and no mask stands between."""
    scaled = [n for n, factor in enumerate(factors) if factor is not None and not members[n].dropout]
    if scaled:
        gradient = gradient.clone()
        for n in scaled:
            gradient[members[n].span] = inner[n]
    return gradient


def _dense(weight: Tensor | None, unpack: Any, like: Tensor) -> Tensor:
    """Return W, unpacked where that is needed, in the arithmetic of a tensor."""
    dense: Tensor = unpack().to(like.dtype) if weight is None else weight
    return dense
