"""Products with frozen weights and their LoRA adapters, for linear layers that read the same input at once.

q, k and v read the same hidden states, and so do gate and up. Their frozen weights stand below each other in one
matrix W, their adapters' A in one matrix, their scaled B on the diagonal of another:

    y = x W^T + (x A^T) B^T

That is three products instead of three for each layer, and the sum costs nothing, as the large product adds to it. The
weights stay those of the modules that PEFT has wrapped, which become views into W.
"""

from collections.abc import Callable, Sequence
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
        self._packed = type(bases[0]) is not nn.Linear
        self._stacked: Tensor | None = None

    @property
    def weight(self) -> Tensor | None:
        """W, shape (outputs, inputs), stacked anew if the modules have moved to another device; None in 4 bits."""
        if self._packed:
            return None
        weights = [base_layer(module).weight for module in self.modules]
        if self._stacked is None or self._stacked.data_ptr() != weights[0].data_ptr():
            with torch.inference_mode(False):  # what is made in it could not be trained through
                self._stacked = _stack(weights)
        return self._stacked

    @property
    def bias(self) -> Tensor | None:
        """The biases one after the other; None where the layers have none."""
        biases = [base_layer(module).bias for module in self.modules]
        return None if biases[0] is None else torch.cat([bias.detach() for bias in biases])

    def unpack(self) -> Tensor:
        """Return W from 4 bits, shape (outputs, inputs), in the dtype that it had before packing."""
        from bitsandbytes.functional import dequantize_4bit

        weights = [base_layer(module).weight for module in self.modules]
        return torch.cat([dequantize_4bit(weight.data, weight.quant_state) for weight in weights])

    def with_adapters(self, adapters: "list[Adapter | None]") -> "Linear":
        """Return what a product with these layers needs."""
        return Linear(self.weight, self.unpack if self._packed else None, self.bias, adapters)


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
    """The LoRA matrices of a group in the arithmetic of its products, and how their input is dropped.

    `a` has the shape (ranks, inputs), `b` (outputs, ranks). `dropout` is that of the input of each module, whose ranks
    are `ranks`; its masks come from `generator`, or from torch's own.
    """

    a: Tensor
    b: Tensor
    ranks: list[int]
    dropout: float
    generator: torch.Generator | None


class Linear(NamedTuple):
    """A product: W, or what unpacks it where it is kept in 4 bits; the bias; the adapters.

    Each run that shares the product has its adapter here, or None where it adapts none of these layers.
    """

    weight: Tensor | None
    unpack: Callable[[], Tensor] | None
    bias: Tensor | None
    adapters: list[Adapter | None]


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

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every module."""
        return [matrix[ADAPTER].weight for module in self._modules for matrix in (module.lora_A, module.lora_B)]

    def convert(self, training: bool, generator: torch.Generator | None = None) -> list[Adapter | None]:
        """Return the adapter of each group as it is now; None where there is none, or it is switched off.

        Args:
            training: dropout is live.
            generator: of its masks; None is torch's own.
        """
        if not self._modules or self._modules[0].disable_adapters:
            return [None] * len(self._ranks)
        matrices = iter(_Convert.apply(self._places, self._shapes, self.dtype, *self.parameters))  # type: ignore[no-untyped-call]
        drop = self._modules[0].lora_dropout[ADAPTER]
        dropout = drop.p if training and isinstance(drop, nn.Dropout) else 0.0
        return [
            Adapter(next(matrices), next(matrices), ranks, dropout, generator) if any(ranks) else None
            for ranks in self._ranks
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
    members = [_Member(span, *own[2:]) for span, own in zip(spans, adapters, strict=True) if own is not None]
    if not members:
        out = _Frozen.apply(x, weight, unpack, bias)  # type: ignore[no-untyped-call]
        return out
    matrices = [matrix for own in adapters if own is not None for matrix in (own.a, own.b)]
    out = _Grouped.apply(x, weight, unpack, bias, members, *matrices)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor, linear: Linear) -> Tensor:
    """Return the same by plain operations, for one run."""
    weight, unpack, bias, (adapter,) = linear
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


class _Member(NamedTuple):
    """A run in a product: its tokens, and how the input of its adapter is dropped (see `Adapter`)."""

    span: slice
    ranks: list[int]
    dropout: float
    generator: torch.Generator | None

    def masks(self, x: Tensor) -> list[Tensor]:
        """Return what the input of each module's adapter is multiplied by, as in PEFT; nothing without dropout."""
        kept = 1 - self.dropout
        if kept == 1:
            return []
        return [torch.empty_like(x).bernoulli_(kept, generator=self.generator).div_(kept) for _ in self.ranks]


class _Grouped(torch.autograd.Function):
    """x W^T over the tokens of all runs, and (x A^T) B^T over those of each; A reads x through masks, if any."""

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
        masks = [member.masks(x[member.span]) for member in members]
        lows = [
            _lower(x[member.span], own, a, member.ranks)
            for member, own, a in zip(members, masks, matrices[::2], strict=True)
        ]
        dense = _dense(weight, unpack, x)
        if len(members) == 1 and len(lows[0]) == len(x):  # the large product adds to the small one
            out = torch.addmm(nn.functional.linear(lows[0], matrices[1], bias), x, dense.mT)
        else:
            out = nn.functional.linear(x, dense, bias)
            for member, low, b in zip(members, lows, matrices[1::2], strict=True):
                out[member.span].addmm_(low, b.mT)
        dropped = [mask.bool() for own in masks for mask in own]
        ctx.save_for_backward(x, weight, *matrices, *lows, *dropped)
        ctx.unpack, ctx.members = unpack, members
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        count = len(ctx.members)
        x, weight, *rest = ctx.saved_tensors
        matrices, lows, dropped = rest[: 2 * count], rest[2 * count : 3 * count], iter(rest[3 * count :])
        lowers = [gradient[member.span] @ b for member, b in zip(ctx.members, matrices[1::2], strict=True)]
        before = None
        if ctx.needs_input_grad[0]:
            dense = _dense(weight, ctx.unpack, gradient)
            if count == 1 and len(lowers[0]) == len(x) and not ctx.members[0].dropout:
                before = torch.addmm(lowers[0] @ matrices[0], gradient, dense)
            else:
                before = gradient @ dense
        own: list[Tensor] = []
        for member, low, lower, a in zip(ctx.members, lows, lowers, matrices[::2], strict=True):
            read = x[member.span]
            if member.dropout:
                masks = [next(dropped).to(x.dtype).div_(1 - member.dropout) for _ in member.ranks]
                parts = list(zip(masks, lower.split(member.ranks, 1), a.split(member.ranks), strict=True))
                own.append(torch.cat([part.mT @ (read * mask) for mask, part, _ in parts]))
                if before is not None:
                    before[member.span] += sum((part @ rows) * mask for mask, part, rows in parts)
            else:
                own.append(lower.mT @ read)
                if before is not None and (count > 1 or len(low) < len(x)):
                    before[member.span].addmm_(lower, a)
            own.append((low.mT @ gradient[member.span]).mT)
        return before, None, None, None, None, *own


def _lower(x: Tensor, masks: list[Tensor], a: Tensor, ranks: list[int]) -> Tensor:
    """Return x A^T, in which each module's part of A reads x through its mask."""
    if not masks:
        return nn.functional.linear(x, a)
    return torch.cat([(x * mask) @ part.mT for mask, part in zip(masks, a.split(ranks), strict=True)], 1)


def _dense(weight: Tensor | None, unpack: Any, like: Tensor) -> Tensor:
    """Return W, unpacked where that is needed, in the arithmetic of a tensor."""
    dense: Tensor = unpack().to(like.dtype) if weight is None else weight
    return dense
