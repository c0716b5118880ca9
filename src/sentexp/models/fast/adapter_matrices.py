"""The matrices that the adapters of groups are multiplied by, made of the parameters of all modules in one go.

The parameters are float32, the matrices have the dtype of the arithmetic. For each group there is A, shape (ranks,
inputs), with the rows of its modules below each other, and B, shape (outputs, ranks), with the scaled B of each module
on its diagonal and 0 elsewhere. Those of several runs are stacked: (runs, ranks, inputs) and (runs, outputs, ranks); a
module has as many ranks there as in the run with the most, and where a run has fewer, both matrices are 0.

On the CPU each parameter is copied to its place. On a GPU, where each copy is a kernel, all parameters are joined, and
one kernel takes each element of every B from its place among them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """The adapter of a module: its group and run, its rows of A and of B there, and the scale of B."""

    group: int
    ranks: slice
    outputs: slice
    scale: float
    run: int = 0


class GroupShape(NamedTuple):
    """The sizes of the matrices of a group."""

    inputs: int
    outputs: int
    ranks: int


class AdapterMatrices:
    """The places of the parameters of modules in the matrices of their groups.

    Args:
        blocks: of the modules: in the order of their groups, within a group in that of the runs, then of the ranks.
        shapes: of the groups.
        runs: how many runs there are; of one alone the matrices are not stacked.
    """

    def __init__(self, blocks: list[Block], shapes: list[GroupShape], runs: int = 1) -> None:
        self.blocks = blocks
        self.shapes = shapes
        self.runs = runs
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

    @property
    def stacked(self) -> tuple[int, ...]:
        """What the shapes of the matrices begin with."""
        return (self.runs,) if self.runs > 1 else ()

    @cached_property
    def scale(self) -> float | None:
        """The scale of all modules; None where they differ."""
        scales = {block.scale for block in self.blocks}
        return scales.pop() if len(scales) == 1 else None

    @cached_property
    def a_pieces(self) -> list[int]:
        """How many elements of all A one after the other a module has, and how many 0 are behind them, in turns."""
        found = []
        for number, block in enumerate(self.blocks):
            shape, last = self.shapes[block.group], number + 1 == len(self.blocks)
            after = None if last else self.blocks[number + 1]
            is_last = after is None or (after.group, after.run) != (block.group, block.run)
            end = shape.ranks if is_last or after is None else after.ranks.start
            found += [_height(block.ranks) * shape.inputs, (end - block.ranks.stop) * shape.inputs]
        return found

    @cached_property
    def sizes(self) -> tuple[list[int], list[int]]:
        """How many elements A and B of each group have."""
        runs = self.runs
        return (
            [runs * shape.ranks * shape.inputs for shape in self.shapes],
            [runs * shape.outputs * shape.ranks for shape in self.shapes],
        )

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the place of each element of all B among the joined parameters B, and the way back.

        The first has an element for each element of all B one after the other; after the last parameter comes the 0
        that is off the diagonals. The second has one for each element of the parameters: its place among the gradients
        of all B, transposed, one after the other.
        """
        if device not in self._indices:
            self._indices[device] = self._find_indices(device)
        return self._indices[device]

    def _find_indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"dtype": torch.int32, "device": device}
        count = sum(_height(block.outputs) * _height(block.ranks) for block in self.blocks)
        there = [torch.full((self.runs, shape.outputs, shape.ranks), count, **options) for shape in self.shapes]
        back, done, starts = [], 0, torch.tensor([0, *self.sizes[1]]).cumsum(0).tolist()
        for block in self.blocks:
            rows, columns = _height(block.outputs), _height(block.ranks)
            own = torch.arange(done, done + rows * columns, **options).view(rows, columns)
            there[block.group][block.run, block.outputs, block.ranks] = own
            _, outputs, ranks = self.shapes[block.group]
            row = torch.arange(block.outputs.start, block.outputs.stop, **options)[:, None]
            column = torch.arange(block.ranks.start, block.ranks.stop, **options) + block.run * ranks
            back.append((starts[block.group] + column * outputs + row).flatten())
            done += rows * columns
        return torch.cat([index.flatten() for index in there]), torch.cat(back)

    def scales(self, like: Tensor) -> Tensor:
        """Return the scale of each element of the joined parameters B, where they differ."""
        counts = [_height(block.outputs) * _height(block.ranks) for block in self.blocks]
        parts = [like.new_full((count,), block.scale) for count, block in zip(counts, self.blocks, strict=True)]
        return torch.cat(parts)


class _Copied(torch.autograd.Function):
    """Copies parameters to their places; cuts the gradients of the matrices up."""

    @staticmethod
    def forward(ctx: Any, layout: AdapterMatrices, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.dtype = layout, parameters[0].dtype
        options: dict[str, Any] = {"dtype": dtype, "device": parameters[0].device}
        matrices = []
        for inputs, outputs, ranks in layout.shapes:
            matrices.append(torch.zeros(*layout.stacked, ranks, inputs, **options))
            matrices.append(torch.zeros(*layout.stacked, ranks, outputs, **options).mT)
        there = [part for block in layout.blocks for part in _parts(block, layout, matrices)]
        torch._foreach_copy_(there, parameters)
        torch._foreach_mul_(there[1::2], [block.scale for block in layout.blocks])
        return tuple(matrices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        layout: AdapterMatrices = ctx.layout
        here = [part for block in layout.blocks for part in _parts(block, layout, gradients)]
        to_parameters = [torch.empty(part.shape, dtype=ctx.dtype, device=part.device) for part in here]
        torch._foreach_copy_(to_parameters, here)
        torch._foreach_mul_(to_parameters[1::2], [block.scale for block in layout.blocks])
        return None, None, *to_parameters


def _parts(block: Block, layout: AdapterMatrices, matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the parts of A and B of its group that are a module's."""
    a, b = matrices[2 * block.group : 2 * block.group + 2]
    run = (block.run,) if layout.runs > 1 else ()
    return a[(*run, block.ranks)], b[(*run, block.outputs, block.ranks)]


class _Gathered(torch.autograd.Function):
    """The same in a number of kernels that does not depend on how many modules there are."""

    @staticmethod
    def forward(ctx: Any, layout: AdapterMatrices, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.shapes, ctx.dtype = layout, [part.shape for part in parameters], parameters[0].dtype
        nothing = parameters[0].new_zeros(max(1, *layout.a_pieces[1::2]))
        pieces = [piece for part in parameters[0::2] for piece in (part.flatten(), nothing)]
        a = torch.cat([piece[:size] for piece, size in zip(pieces, layout.a_pieces, strict=True) if size]).to(dtype)
        b = torch.cat([*(part.flatten() for part in parameters[1::2]), nothing[:1]]).to(dtype)
        scale = layout.scale
        if scale is None:
            b[:-1] *= layout.scales(b)
        b = b.index_select(0, layout.indices(b.device)[0])
        if scale is not None and scale != 1:
            b *= scale
        matrices: list[Tensor] = []
        parts = (flat.split(sizes) for flat, sizes in zip((a, b), layout.sizes, strict=True))
        for (inputs, outputs, ranks), to_a, to_b in zip(layout.shapes, *parts, strict=True):
            matrices += [to_a.view(*layout.stacked, ranks, inputs), to_b.view(*layout.stacked, outputs, ranks)]
        return tuple(matrices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        layout: AdapterMatrices = ctx.layout
        a = torch.cat([part.flatten() for part in gradients[0::2]]).to(ctx.dtype)
        b = torch.cat([part.mT.flatten() for part in gradients[1::2]])  # B's are made transposed
        b = b.index_select(0, layout.indices(b.device)[1]).to(ctx.dtype)
        scale = layout.scale
        if scale != 1:
            b *= layout.scales(b) if scale is None else scale
        to_a = a.split(layout.a_pieces)[0::2]
        to_b = b.split([shape.numel() for shape in ctx.shapes[1::2]])
        of_modules = (part for pair in zip(to_a, to_b, strict=True) for part in pair)
        return None, None, *(part.view(shape) for part, shape in zip(of_modules, ctx.shapes, strict=True))


def _height(rows: slice) -> int:
    return int(rows.stop - rows.start)
