"""LoRA adapters of several runs as batched products, where each run has as many tokens as the others.

`fused_lora_linear` multiplies the adapters of the runs one after the other, in so many kernels for each run. Here their
matrices are stacked, so that the number of kernels does not depend on how many runs there are. With x, shape (runs *
tokens, inputs), read as (runs, tokens, inputs), and everything else of `lora_linear` stacked in the same way:

    u = (x M) A^T      y = x W^T + u B^T      v = g B
    dA = v^T (x M)     dB = g^T u             dx = g W + (v A) M
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentexp.models.fast.lora_linear import dense_weight
from sentexp.models.fast.stacked_lora import Adapters, layout_of, most_ranks


class BatchedParts(NamedTuple):
    """How the modules of a group divide the adapters: the ranks of each, dropout, and what draws the masks of a run."""

    ranks: list[int]
    dropout: float
    generators: Sequence[torch.Generator | None]

    def masks(self, x: Tensor) -> list[Tensor]:
        """Return what the input of each module's adapters is multiplied by, shape (runs, tokens, inputs).

        Each run draws what it would alone.
        """
        kept = 1 - self.dropout
        if kept == 1:
            return []
        masks = [torch.empty_like(x) for _ in self.ranks]
        for mask in masks:
            for own, generator in zip(mask, self.generators, strict=True):
                own.bernoulli_(kept, generator=generator)
            mask.div_(kept)
        return masks


class BatchedAdapter(NamedTuple):
    """The matrices of a group: `a` has the shape (runs, ranks, inputs), `b` (runs, outputs, ranks), scaled."""

    a: Tensor
    b: Tensor
    parts: BatchedParts

    def over(self, tokens: slice) -> "BatchedAdapter":
        """Return the same: it is for all tokens."""
        del tokens
        return self


class AdapterStack:
    """The adapters of several runs over the same weights; see `can_be_stacked`.

    Args:
        adapters: of the runs.
    """

    def __init__(self, adapters: Sequence[Adapters]) -> None:
        self.adapters = list(adapters)
        self._ranks = most_ranks(adapters)
        self._layout = layout_of(adapters)
        device = adapters[0].parameters[0].device
        if device.type == "cuda":  # now: what is made while a graph is recorded is not there before it is replayed
            self._layout.indices(device)

    def convert(self, training: bool, generators: Sequence[torch.Generator | None]) -> list[BatchedAdapter | None]:
        """Return the adapters of each group as they are now; None where there are none.

        Args:
            training: dropout is live.
            generators: of the masks of each run.
        """
        dropout = self.adapters[0].dropout if training else 0.0
        of_runs = [iter(one.matrices_of_groups()) for one in self.adapters]
        parameters = [matrix for ranks in self._ranks if any(ranks) for run in of_runs for matrix in next(run)]
        matrices = iter(self._layout.convert(parameters, self.adapters[0].dtype))
        return [
            BatchedAdapter(*next(matrices), BatchedParts(ranks, dropout, generators)) if any(ranks) else None
            for ranks in self._ranks
        ]


def can_be_stacked(adapters: Sequence[Adapters]) -> bool:
    """Tell whether runs adapt the same modules, by LoRA, with the same dropout."""
    first = adapters[0]
    return len(adapters) > 1 and all(
        one.is_lora and _adapted(one) == _adapted(first) and one.dropout == first.dropout and one.dtype == first.dtype
        for one in adapters
    )


def _adapted(adapters: Adapters) -> list[list[bool]]:
    return [[rank > 0 for rank in ranks] for ranks in adapters.ranks]


def batched_lora_linear(
    x: Tensor, weight: Tensor | None, unpack: Any, bias: Tensor | None, adapter: BatchedAdapter
) -> Tensor:
    """Return the outputs of a group side by side, shape (runs * tokens, outputs).

    Args:
        x: the tokens of the runs one after the other, as many of each; shape (runs * tokens, inputs).
        weight: W, shape (outputs, inputs); None if packed.
        unpack: unpacks packed W.
        bias: of the outputs.
        adapter: of the runs.
    """
    out: Tensor = _BatchedLoraLinear.apply(x, weight, unpack, bias, *adapter)  # type: ignore[no-untyped-call]
    return out


class _BatchedLoraLinear(torch.autograd.Function):
    """The product with one adapter for each of several runs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        unpack: Any,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        parts: BatchedParts,
    ) -> Tensor:
        runs = x.unflatten(0, (len(a), -1))
        masks = parts.masks(runs)
        if masks:
            rows = a.split(parts.ranks, 1)
            low = torch.cat([(runs * mask) @ own.mT for mask, own in zip(masks, rows, strict=True)], 2)
        else:
            low = torch.bmm(runs, a.mT)
        out = x @ dense_weight(weight, unpack, x).mT
        out.unflatten(0, (len(a), -1)).baddbmm_(low, b.mT)
        if bias is not None:
            out += bias
        ctx.save_for_backward(x, weight, a, b, low, *(mask.bool() for mask in masks))
        ctx.unpack, ctx.parts = unpack, parts
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, weight, a, b, low, *dropped = ctx.saved_tensors
        runs, outer = (part.unflatten(0, (len(a), -1)) for part in (x, gradient))
        masks = [mask.to(x.dtype).div_(1 - ctx.parts.dropout) for mask in dropped]
        inner = torch.bmm(outer, b)
        lows, rows = inner.split(ctx.parts.ranks, 2), a.split(ctx.parts.ranks, 1)
        to_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ dense_weight(weight, ctx.unpack, gradient)
            own = to_x.unflatten(0, (len(a), -1))
            if masks:
                for v, matrix, mask in zip(lows, rows, masks, strict=True):
                    own.addcmul_(v @ matrix, mask)
            else:
                own.baddbmm_(inner, a)
        if masks:
            to_a = torch.cat([v.mT @ (runs * mask) for v, mask in zip(lows, masks, strict=True)], 1)
        else:
            to_a = torch.bmm(inner.mT, runs)
        return to_x, None, None, None, to_a, torch.bmm(low.mT, outer).mT, None
