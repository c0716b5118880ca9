"""The matrices that the adapters of groups are multiplied by, made of the parameters of all modules in one go.

The parameters are float32, the matrices have the dtype of the arithmetic. For each group there is A, shape (ranks,
inputs), with the rows of its modules below each other, and B, shape (outputs, ranks), with the scaled B of each module
on its diagonal and 0 elsewhere.

On the CPU each parameter is copied to its place. On a GPU, where each copy is a kernel, all parameters are joined, and
one kernel takes each element of every B from its place among them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """The adapter of a module: its group, its rows of A and of B there, and the scale of B."""

    group: int
    ranks: slice
    outputs: slice
    scale: float


class AdapterMatrices:
    """Where the parameters of modules stand in the matrices of their groups.

    Args:
        blocks: of the modules, in the order of their groups, and within each in that of its rows.
        shapes: (inputs, outputs, ranks) of each group.
    """

    def __init__(self, blocks: list[Block], shapes: list[tuple[int, int, int]]) -> None:
        self.blocks = blocks
        self.shapes = shapes
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def convert(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Return A and B of each group.

        Args:
            parameters: A and B of each module, in the order of the blocks.
            dtype: of the matrices.
        """
        kind: Any = _Gathered if parameters[0].is_cuda else _Copied
        matrices = iter(kind.apply(self, dtype, *parameters))
        return list(zip(matrices, matrices, strict=True))

    @cached_property
    def scale(self) -> float | None:
        """The scale of all modules; None where they differ."""
        scales = {block.scale for block in self.blocks}
        return scales.pop() if len(scales) == 1 else None

    @cached_property
    def b_sizes(self) -> list[int]:
        """How many elements each B has."""
        return [outputs * ranks for _, outputs, ranks in self.shapes]

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where an element of any B stands among the joined parameters B, and the way back.

        The first has an element for each element of all B one after the other; behind the last parameter stands the 0
        that is off the diagonals. The second has one for each element of the parameters: its place among the gradients
        of all B, transposed, one after the other.
        """
        if device not in self._indices:
            self._indices[device] = self._find_indices(device)
        return self._indices[device]

    def _find_indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"dtype": torch.int32, "device": device}
        count = sum(_height(block.outputs) * _height(block.ranks) for block in self.blocks)
        there = [torch.full((outputs, ranks), count, **options) for _, outputs, ranks in self.shapes]
        back, done, starts = [], 0, torch.tensor([0, *self.b_sizes]).cumsum(0).tolist()
        for block in self.blocks:
            rows, columns = _height(block.outputs), _height(block.ranks)
            own = torch.arange(done, done + rows * columns, **options).view(rows, columns)
            there[block.group][block.outputs, block.ranks] = own
            outputs = self.shapes[block.group][1]
            row = torch.arange(block.outputs.start, block.outputs.stop, **options)[:, None]
            column = torch.arange(block.ranks.start, block.ranks.stop, **options)
            back.append((starts[block.group] + column * outputs + row).flatten())
            done += rows * columns
        return torch.cat([index.flatten() for index in there]), torch.cat(back)

    def scales(self, like: Tensor) -> Tensor:
        """Return the scale of each element of the joined parameters B, where they differ."""
        scales = [block.scale for block in self.blocks]
        counts = [_height(block.outputs) * _height(block.ranks) for block in self.blocks]
        return torch.tensor(scales, dtype=like.dtype).repeat_interleave(torch.tensor(counts)).to(like.device)


class _Copied(torch.autograd.Function):
    """Copies parameters to their places; cuts the gradients of the matrices up."""

    @staticmethod
    def forward(ctx: Any, layout: AdapterMatrices, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.dtype = layout, parameters[0].dtype
        options: dict[str, Any] = {"dtype": dtype, "device": parameters[0].device}
        matrices = []
        for inputs, outputs, ranks in layout.shapes:
            matrices += [torch.zeros(ranks, inputs, **options), torch.zeros(outputs, ranks, **options)]
        there = []
        for block in layout.blocks:
            a, b = matrices[2 * block.group : 2 * block.group + 2]
            there += [a[block.ranks], b[block.outputs, block.ranks]]
        torch._foreach_copy_(there, parameters)
        torch._foreach_mul_(there[1::2], [block.scale for block in layout.blocks])
        return tuple(matrices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        to_parameters: list[Tensor | None] = []
        for block in ctx.layout.blocks:
            to_a, to_b = gradients[2 * block.group : 2 * block.group + 2]
            to_parameters.append(None if to_a is None else to_a[block.ranks].to(ctx.dtype))
            part = None if to_b is None else to_b[block.outputs, block.ranks].to(ctx.dtype)
            to_parameters.append(part if part is None or block.scale == 1 else part * block.scale)
        return None, None, *to_parameters


class _Gathered(torch.autograd.Function):
    """The same in a number of kernels that does not depend on how many modules there are."""

    @staticmethod
    def forward(ctx: Any, layout: AdapterMatrices, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.parameters = layout, [(part.shape, part.dtype) for part in parameters]
        a = torch.cat([part.flatten() for part in parameters[0::2]]).to(dtype)
        b = torch.cat([*(part.flatten() for part in parameters[1::2]), a.new_zeros(1, dtype=parameters[0].dtype)])
        b = b.to(dtype)
        scale = layout.scale
        if scale is None:
            b[:-1] *= layout.scales(b)
        b = b.index_select(0, layout.indices(b.device)[0])
        if scale is not None and scale != 1:
            b *= scale
        matrices: list[Tensor] = []
        a_sizes = [ranks * inputs for inputs, _, ranks in layout.shapes]
        parts = zip(layout.shapes, a.split(a_sizes), b.split(layout.b_sizes), strict=True)
        for (inputs, outputs, ranks), to_a, to_b in parts:
            matrices += [to_a.view(ranks, inputs), to_b.view(outputs, ranks)]
        return tuple(matrices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        layout, shapes = ctx.layout, [shape for shape, _ in ctx.parameters]
        dtype = ctx.parameters[0][1]
        a = torch.cat([part.flatten() for part in gradients[0::2]]).to(dtype)
        b = torch.cat([part.mT.flatten() for part in gradients[1::2]])  # B's are made transposed
        b = b.index_select(0, layout.indices(b.device)[1]).to(dtype)
        scale = layout.scale
        if scale != 1:
            b *= layout.scales(b) if scale is None else scale
        of_a, of_b = (
            [part.view(shape) for part, shape in zip(flat.split(list(map(_count, own))), own, strict=True)]
            for flat, own in ((a, shapes[0::2]), (b, shapes[1::2]))
        )
        return None, None, *(part for pair in zip(of_a, of_b, strict=True) for part in pair)


def _height(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _count(shape: torch.Size) -> int:
    return shape.numel()
