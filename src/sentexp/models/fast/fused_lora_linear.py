"""`lora_linear` for several runs: x W^T over the tokens of all, and the adapter of each over its own.

The equations are those of `lora_linear`, with x, u, g, h and v at the tokens of a run.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentexp.models.fast.batched_lora import BatchedAdapter, batched_lora_linear
from sentexp.models.fast.lora_linear import (
    AdapterGradients,
    AdapterParts,
    Linear,
    add_dora,
    dense_weight,
    lora_linear,
    masked_product,
)


def fused_lora_linear(x: Tensor, linear: Linear) -> Tensor:
    """Return the outputs of a group side by side, shape (tokens, outputs).

    Args:
        x: shape (tokens, inputs).
        linear: the group and the adapters of the runs.
    """
    weight, unpack, bias, adapters = linear
    if adapters and isinstance(adapters[0], BatchedAdapter):
        return batched_lora_linear(x, weight, unpack, bias, adapters[0])
    if not adapters or (len(adapters) == 1 and adapters[0].parts.tokens.indices(len(x)) == (0, len(x), 1)):
        return lora_linear(x, linear)
    parts = [adapter.parts for adapter in adapters]
    matrices = [matrix for adapter in adapters for matrix in (adapter.a, adapter.b, adapter.factor)]
    out: Tensor = _FusedLoraLinear.apply(x, weight, unpack, bias, parts, *matrices)  # type: ignore[no-untyped-call]
    return out


class _Kept(NamedTuple):
    """What the backward pass needs of a run: its matrices, u and d, and behind them its masks."""

    a: Tensor
    b: Tensor
    factor: Tensor | None
    low: Tensor
    direction: Tensor | None

    @classmethod
    def next(cls, saved: Iterator[Any]) -> "_Kept":
        """Return the next one of the saved tensors."""
        return cls(*islice(saved, len(cls._fields)))


class _FusedLoraLinear(torch.autograd.Function):
    """The product with one adapter for each of several runs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        unpack: Any,
        bias: Tensor | None,
        parts: list[AdapterParts],
        *matrices: Tensor,
    ) -> Tensor:
        dense = dense_weight(weight, unpack, x)
        out = x @ dense.mT
        triples, saved = iter(matrices), [x, weight]
        for part in parts:
            a, b, factor = islice(triples, 3)
            own_x, own_out, direction = x[part.tokens], out[part.tokens], None
            masks = part.masks(own_x)
            low = masked_product(own_x, masks, a, part.ranks)
            if factor is None:
                own_out.addmm_(low, b.mT)
            else:
                direction = add_dora(own_out, own_x, masks, dense, low, b, factor, part)
            saved += [*_Kept(a, b, factor, low, direction), *(mask.bool() for mask in masks)]
        if bias is not None:
            out += bias
        ctx.save_for_backward(*saved)
        ctx.unpack, ctx.parts = unpack, parts
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        x, weight = next(saved), next(saved)
        runs: list[tuple[_Kept, list[Tensor], AdapterGradients]] = []
        for part in ctx.parts:
            kept = _Kept.next(saved)
            dropped = list(islice(saved, len(part.ranks) if part.dropout else 0))
            runs.append((kept, dropped, AdapterGradients.of(gradient[part.tokens], kept.b, kept.factor, part)))
        to_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dense = dense_weight(weight, ctx.unpack, gradient)
            to_x = _through_weight(gradient, [terms for _, _, terms in runs]) @ dense
        to_matrices: list[Tensor | None] = []
        for kept, dropped, terms in runs:
            tokens, masks = terms.parts.tokens, terms.parts.restored(dropped, x)
            if to_x is not None and masks:
                to_x[tokens] += terms.to_masked_input(kept.a, dense, masks)
            elif to_x is not None:
                to_x[tokens].addmm_(terms.low, kept.a)
            to_factor = terms.to_factor(kept.direction, kept.factor)
            to_matrices += [terms.to_a(x[tokens], masks), terms.to_b(kept.low), to_factor]
        return to_x, None, None, None, None, *to_matrices


def _through_weight(gradient: Tensor, runs: list[AdapterGradients]) -> Tensor:
    """Return what is multiplied by W in dx: h of the runs whose z is x W^T, and g of the others."""
    unmasked = [terms for terms in runs if terms.is_dora and not terms.parts.dropout]
    if unmasked:
        gradient = gradient.clone()
    for terms in unmasked:
        gradient[terms.parts.tokens] = terms.inner
    return gradient
