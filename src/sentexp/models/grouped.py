"""Products with frozen weights and their LoRA adapters, for linear layers that read the same input at once.

q, k and v read the same hidden states, and so do gate and up. Their frozen weights stand below each other in one
matrix W, their adapters' A in one matrix, their scaled B on the diagonal of another:

    y = x W^T + (x A^T) B^T

That is three products instead of three for each layer, and the sum costs nothing, as the large product adds to it. The
weights stay those of the modules that PEFT has wrapped, which become views into W.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ADAPTER = "default"


@dataclass(slots=True)
class Group:
    """Linear layers that read the same input; `width` is that of their outputs together."""

    modules: list[nn.Module]
    _stacked: Tensor | None = None
    _bias: Tensor | None = None

    def __post_init__(self) -> None:
        bases = [base_layer(module) for module in self.modules]
        if all(type(base) is nn.Linear for base in bases):
            self._stacked = _stack([base.weight for base in bases])
        if bases[0].bias is not None:
            self._bias = torch.cat([base.bias.detach() for base in bases])

    @property
    def adapted(self) -> list[nn.Module | None]:
        """The modules whose adapter is switched on; None in place of the others."""
        return [module if hasattr(module, "lora_A") and not module.disable_adapters else None for module in self.modules]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return W, shape (outputs, inputs); 4-bit weights are unpacked."""
        if self._stacked is not None:
            return self._stacked
        from bitsandbytes.functional import dequantize_4bit

        weights = [base_layer(module).weight for module in self.modules]
        unpacked = [dequantize_4bit(weight.data, weight.quant_state).to(dtype) for weight in weights]
        return unpacked[0] if len(unpacked) == 1 else torch.cat(unpacked)

    @property
    def outputs(self) -> list[int]:
        """The widths of the outputs, one for each module."""
        return [base_layer(module).out_features for module in self.modules]


def base_layer(module: nn.Module) -> Any:
    """Return the linear layer inside what PEFT has wrapped around it, or the layer itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module  # type: ignore[operator]


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


@dataclass(slots=True)
class Adapter:
    """The LoRA matrices of a group in the arithmetic of its products; None where no module is adapted.

    `a` has the shape (ranks, inputs), `b` (outputs, ranks). `dropout` is that of the input of each module, whose ranks
    are `ranks`.
    """

    a: Tensor
    b: Tensor
    ranks: list[int]
    dropout: float


@dataclass(slots=True)
class Adapters:
    """The adapters of groups, converted together once for each forward pass.

    The float32 weights are copied into matrices of the arithmetic's dtype, in one go; their gradients come back the
    same way. Off the diagonal B is 0.
    """

    groups: list[Group]
    dtype: torch.dtype

    def convert(self, training: bool) -> list[Adapter | None]:
        """Return the adapter of each group as it is now."""
        adapted = [group.adapted for group in self.groups]
        parameters = [
            matrix[ADAPTER].weight
            for modules in adapted
            for module in modules
            if module is not None
            for matrix in (module.lora_A, module.lora_B)
        ]
        if not parameters:
            return [None] * len(self.groups)
        places: list[_Place] = []
        buffers: list[Tensor] = []
        found: list[tuple[list[int], float] | None] = []
        for group, modules in zip(self.groups, adapted, strict=True):
            ranks = [0 if module is None else module.lora_A[ADAPTER].weight.shape[0] for module in modules]
            if not sum(ranks):
                found.append(None)
                continue
            first = base_layer(group.modules[0])
            a, b = (
                torch.zeros(shape, dtype=self.dtype, device=first.weight.device)
                for shape in ((sum(ranks), first.in_features), (sum(group.outputs), sum(ranks)))
            )
            rank = output = 0
            for module, own, width in zip(modules, ranks, group.outputs, strict=True):
                if module is not None:
                    scale = float(module.scaling[ADAPTER])
                    places.append(_Place(len(buffers), slice(rank, rank + own), slice(None), 1.0))
                    places.append(_Place(len(buffers) + 1, slice(output, output + width), slice(rank, rank + own), scale))
                rank, output = rank + own, output + width
            buffers += [a, b]
            drop = next(module.lora_dropout[ADAPTER] for module in modules if module is not None)
            found.append((ranks, drop.p if training and isinstance(drop, nn.Dropout) else 0.0))
        matrices = iter(_Convert.apply(places, buffers, *parameters))
        return [None if part is None else Adapter(next(matrices), next(matrices), *part) for part in found]


class _Place(NamedTuple):
    """Where a parameter stands: the number of its buffer, its rows and columns there; and its scale."""

    buffer: int
    rows: slice
    columns: slice
    scale: float


class _Convert(torch.autograd.Function):
    """Copies parameters to their places in buffers, scaled; the gradients of the buffers are cut up and scaled back."""

    @staticmethod
    def forward(ctx: Any, places: list[_Place], buffers: list[Tensor], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.places, ctx.dtype = places, parameters[0].dtype
        there = [buffers[place.buffer][place.rows, place.columns] for place in places]
        torch._foreach_copy_(there, torch._foreach_mul(parameters, [place.scale for place in places]))
        return tuple(buffer.detach() for buffer in buffers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        own: list[Tensor | None] = []
        for place in ctx.places:
            whole = gradients[place.buffer]
            part = None if whole is None else whole[place.rows, place.columns].to(ctx.dtype)
            own.append(None if part is None else part * place.scale)
        return None, None, *own


def grouped(x: Tensor, group: Group, adapter: Adapter | None) -> Tensor:
    """Return the outputs of a group side by side, shape (tokens, outputs).

    Args:
        x: shape (tokens, inputs).
        group: of linear layers.
        adapter: theirs; None where nothing is adapted.
    """
    if adapter is None:
        return _Frozen.apply(x, group)  # type: ignore[no-any-return]
    if adapter.dropout:
        return _Dropped.apply(x, group, adapter.a, adapter.b, adapter.ranks, adapter.dropout)  # type: ignore[no-any-return]
    return _Grouped.apply(x, group, adapter.a, adapter.b)  # type: ignore[no-any-return]


class _Frozen(torch.autograd.Function):
    """x W^T; the weight is asked for again in the backward pass, so that unpacked weights are not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return nn.functional.linear(x, group.weight(x.dtype), group._bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.group.weight(gradient.dtype), None


class _Grouped(torch.autograd.Function):
    """x W^T + (x A^T) B^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, a: Tensor, b: Tensor) -> Tensor:
        low = nn.functional.linear(x, a)
        ctx.save_for_backward(x, a, b, low)
        ctx.group = group
        return torch.addmm(nn.functional.linear(low, b, group._bias), x, group.weight(x.dtype).mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, low = ctx.saved_tensors
        lower = gradient @ b
        before = torch.addmm(lower @ a, gradient, ctx.group.weight(x.dtype)) if ctx.needs_input_grad[0] else None
        return before, None, lower.mT @ x, (low.mT @ gradient).mT


class _Dropped(torch.autograd.Function):
    """The same with dropout: each module's adapter reads the input through a mask of its own, as in PEFT."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, a: Tensor, b: Tensor, ranks: list[int], dropout: float) -> Tensor:
        masks = [torch.empty_like(x).bernoulli_(1 - dropout).div_(1 - dropout) for _ in ranks]
        low = torch.cat([(x * mask) @ part.mT for mask, part in zip(masks, a.split(ranks), strict=True)], 1)
        ctx.save_for_backward(x, a, b, low, *(mask.bool() for mask in masks))
        ctx.group, ctx.ranks, ctx.kept = group, ranks, 1 - dropout
        return torch.addmm(nn.functional.linear(low, b, group._bias), x, group.weight(x.dtype).mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, low, *masks = ctx.saved_tensors
        lower = gradient @ b
        before = gradient @ ctx.group.weight(x.dtype) if ctx.needs_input_grad[0] else None
        seen = []
        for mask, part, own in zip(masks, a.split(ctx.ranks), lower.split(ctx.ranks, 1), strict=True):
            kept = mask.to(x.dtype).div_(ctx.kept)
            seen.append(own.mT @ (x * kept))
            if before is not None:
                before += (own @ part) * kept
        return before, None, torch.cat(seen), (low.mT @ gradient).mT, None, None
