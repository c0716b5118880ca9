"""Products with frozen weights and their LoRA adapters, for linear layers that read the same input at once.

q, k and v read the same hidden states, and so do gate and up. Their frozen weights stand below each other in one
matrix W, their adapters' A in one matrix, their scaled B on the diagonal of another:

    y = x W^T + (x A^T) B^T

That is three products instead of three for each layer, and the sum costs nothing, as the large product adds to it. The
weights stay those of the modules that PEFT has wrapped, which become views into W.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ADAPTER = "default"


class Group:
    """Linear layers that read the same input, wrapped by PEFT or not.

    Args:
        modules: of torch or of bitsandbytes in 4 bits, all of a kind.
    """

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        bases = [base_layer(module) for module in modules]
        self.inputs: int = bases[0].in_features
        self.outputs: list[int] = [base.out_features for base in bases]
        self.weight = _stack([base.weight for base in bases]) if type(bases[0]) is nn.Linear else None
        self.bias = None if bases[0].bias is None else torch.cat([base.bias.detach() for base in bases])

    def unpack(self) -> Tensor:
        """Return W from 4 bits, shape (outputs, inputs), in the dtype that it had before packing."""
        from bitsandbytes.functional import dequantize_4bit

        weights = [base_layer(module).weight for module in self.modules]
        return torch.cat([dequantize_4bit(weight.data, weight.quant_state) for weight in weights])

    def with_adapter(self, adapter: "Adapter | None") -> "Linear":
        """Return what a product with these layers needs."""
        return Linear(self.weight, None if self.weight is not None else self.unpack, self.bias, adapter)


def base_layer(module: Any) -> Any:
    """Return the linear layer inside what PEFT has wrapped around it, or the layer itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _stack(weights: list[nn.Parameter]) -> Tensor:
    """Let weights be views into one matrix, and return it; those that are so already stay where they are."""
    first, rows = weights[0], sum(len(weight) for weight in weights)
    if len(weights) == 1:
        return first.data
    place = first.storage_offset()
    together = all(weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for weight in weights)
    for weight in weights:
        together = together and weight.storage_offset() == place and weight.is_contiguous()
        place += weight.numel()
    if together:
        return first.data.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    whole = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


class Adapter(NamedTuple):
    """The LoRA matrices of a group in the arithmetic of its products.

    `a` has the shape (ranks, inputs), `b` (outputs, ranks). `dropout` is that of the input of each module, whose ranks
    are `ranks`.
    """

    a: Tensor
    b: Tensor
    ranks: list[int]
    dropout: float


class Linear(NamedTuple):
    """A product: W, or what unpacks it where it is kept in 4 bits; the bias; the adapter. Each may be None."""

    weight: Tensor | None
    unpack: Callable[[], Tensor] | None
    bias: Tensor | None
    adapter: Adapter | None


class _Place(NamedTuple):
    """Where a parameter stands: the number of its matrix, its rows and columns there; and its scale."""

    matrix: int
    rows: slice
    columns: slice
    scale: float


class Adapters:
    """The adapters of groups, converted together once for each forward pass.

    The float32 weights are copied into matrices of the arithmetic's dtype, in one go; their gradients come back the
    same way. Off the diagonal B is 0.

    Args:
        groups: of linear layers, wrapped by PEFT or not.
        dtype: of the arithmetic.
    """

    def __init__(self, groups: list[Group], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._modules: list[Any] = []
        self._places: list[_Place] = []
        self._shapes: list[tuple[int, int]] = []
        self._ranks = [[_rank(module) for module in group.modules] for group in groups]
        for group, ranks in zip(groups, self._ranks, strict=True):
            if any(ranks):
                self._add(group, ranks)

    def convert(self, training: bool) -> list[Adapter | None]:
        """Return the adapter of each group as it is now; None where there is none, or it is switched off."""
        if not self._modules or self._modules[0].disable_adapters:
            return [None] * len(self._ranks)
        parameters = [matrix[ADAPTER].weight for module in self._modules for matrix in (module.lora_A, module.lora_B)]
        matrices = iter(_Convert.apply(self._places, self._shapes, self.dtype, *parameters))  # type: ignore[no-untyped-call]
        drop = self._modules[0].lora_dropout[ADAPTER]
        dropout = drop.p if training and isinstance(drop, nn.Dropout) else 0.0
        return [
            Adapter(next(matrices), next(matrices), ranks, dropout) if any(ranks) else None for ranks in self._ranks
        ]

    def _add(self, group: Group, ranks: list[int]) -> None:
        first, second = len(self._shapes), len(self._shapes) + 1
        rank = output = 0
        for module, own, width in zip(group.modules, ranks, group.outputs, strict=True):
            if own:
                through = slice(rank, rank + own)
                self._modules.append(module)
                self._places.append(_Place(first, through, slice(None), 1.0))
                self._places.append(
                    _Place(second, slice(output, output + width), through, float(module.scaling[ADAPTER]))
                )
            rank, output = rank + own, output + width
        self._shapes += [(rank, group.inputs), (output, rank)]


def _rank(module: Any) -> int:
    return len(module.lora_A[ADAPTER].weight) if hasattr(module, "lora_A") else 0


class _Convert(torch.autograd.Function):
    """Copies parameters to their places in new matrices, scaled; cuts their gradients up and scales them back."""

    @staticmethod
    def forward(
        ctx: Any, places: list[_Place], shapes: list[tuple[int, int]], dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.places, ctx.dtype = places, parameters[0].dtype
        matrices = [torch.zeros(shape, dtype=dtype, device=parameters[0].device) for shape in shapes]
        there = [matrices[place.matrix][place.rows, place.columns] for place in places]
        torch._foreach_copy_(there, parameters)
        torch._foreach_mul_(there[1::2], [place.scale for place in places[1::2]])
        return tuple(matrices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        own: list[Tensor | None] = []
        for place in ctx.places:
            whole = gradients[place.matrix]
            part = None if whole is None else whole[place.rows, place.columns].to(ctx.dtype)
            own.append(part if part is None or place.scale == 1 else part * place.scale)
        return None, None, None, *own


def multiply(x: Tensor, linear: Linear) -> Tensor:
    """Return the outputs of a group side by side, shape (tokens, outputs).

    Args:
        x: shape (tokens, inputs).
        linear: the group, with its adapter.
    """
    weight, unpack, bias, adapter = linear
    if torch.compiler.is_compiling():  # which finds the derivative itself
        return _plain(x, linear)
    out: Tensor
    if adapter is None:
        out = _Frozen.apply(x, weight, unpack, bias)  # type: ignore[no-untyped-call]
    elif adapter.dropout:
        out = _Dropped.apply(x, weight, unpack, bias, *adapter)  # type: ignore[no-untyped-call]
    else:
        out = _Grouped.apply(x, weight, unpack, bias, adapter.a, adapter.b)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor, linear: Linear) -> Tensor:
    """Return the same by plain operations."""
    weight, unpack, bias, adapter = linear
    out = nn.functional.linear(x, _dense(weight, unpack, x), bias)
    if adapter is None:
        return out
    parts = adapter.a.split(adapter.ranks)
    low = torch.cat([nn.functional.dropout(x, adapter.dropout) @ part.mT for part in parts], 1)
    return out + low @ adapter.b.mT


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


class _Grouped(torch.autograd.Function):
    """x W^T + (x A^T) B^T."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, unpack: Any, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        low = nn.functional.linear(x, a)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.unpack = unpack
        return torch.addmm(nn.functional.linear(low, b, bias), x, _dense(weight, unpack, x).mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        lower = gradient @ b
        before = None
        if ctx.needs_input_grad[0]:
            before = torch.addmm(lower @ a, gradient, _dense(weight, ctx.unpack, gradient))
        return before, None, None, None, lower.mT @ x, (low.mT @ gradient).mT


class _Dropped(torch.autograd.Function):
    """The same with dropout: each module's adapter reads the input through a mask of its own, as in PEFT."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        unpack: Any,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        ranks: list[int],
        dropout: float,
    ) -> Tensor:
        masks = [torch.empty_like(x).bernoulli_(1 - dropout).div_(1 - dropout) for _ in ranks]
        low = torch.cat([(x * mask) @ part.mT for mask, part in zip(masks, a.split(ranks), strict=True)], 1)
        ctx.save_for_backward(x, weight, a, b, low, *(mask.bool() for mask in masks))
        ctx.unpack, ctx.ranks, ctx.kept = unpack, ranks, 1 - dropout
        return torch.addmm(nn.functional.linear(low, b, bias), x, _dense(weight, unpack, x).mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low, *masks = ctx.saved_tensors
        lower = gradient @ b
        before = gradient @ _dense(weight, ctx.unpack, x) if ctx.needs_input_grad[0] else None
        seen = []
        for mask, part, own in zip(masks, a.split(ctx.ranks), lower.split(ctx.ranks, 1), strict=True):
            kept = mask.to(x.dtype).div_(ctx.kept)
            seen.append(own.mT @ (x * kept))
            if before is not None:
                before += (own @ part) * kept
        return before, None, None, None, torch.cat(seen), (low.mT @ gradient).mT, None, None


def _dense(weight: Tensor | None, unpack: Any, like: Tensor) -> Tensor:
    """Return W, unpacked where that is needed, in the arithmetic of a tensor."""
    dense: Tensor = unpack().to(like.dtype) if weight is None else weight
    return dense
