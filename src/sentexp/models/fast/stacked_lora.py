"""Products with frozen weights and their LoRA adapters, for linear layers that read the same input at once.

q, k and v read the same hidden states, and so do gate and up. Their frozen weights are below each other in one
matrix W, their adapters' A in one matrix, their scaled B on the diagonal of another:

    y = x W^T + (x A^T) B^T

That is three products instead of three for each layer, and the sum costs nothing, as the large product adds to it. The
weights stay those of the modules that PEFT has wrapped, which become views into W.

DoRA (Liu et al. 2024, eq. 5) multiplies each output by c = m / |W + B A|, the magnitude that it learns over the norm of
the row, which counts as a constant (section 4.3). The norm takes one more product with W, with the rows of A:

    |w + b A|^2 = |w|^2 + 2 (w A^T) b^T + b (A A^T) b^T
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sentexp.models.dequantize import dense_weight
from sentexp.models.fast.adapter_matrices import AdapterMatrices, Block, GroupShape
from sentexp.models.fast.lora_linear import Adapter, AdapterParts, Linear

ADAPTER = "default"


class Group:
    """Linear layers that read the same input, wrapped by PEFT or not.

    Args:
        modules: of torch, or packed (see `is_packed`), all of a kind.
    """

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        self._bases = [base_layer(module) for module in modules]
        self.inputs: int = self._bases[0].in_features
        self.outputs: list[int] = [base.out_features for base in self._bases]
        self._packed = type(self._bases[0]) is not nn.Linear
        self._stacked: Tensor | None = None
        self._squares: Tensor | None = None

    @property
    def weight(self) -> Tensor | None:
        """W, shape (outputs, inputs), stacked anew if the modules have moved to another device; None if packed."""
        if self._packed:
            return None
        weights = [base.weight for base in self._bases]
        if self._stacked is None or self._stacked.data_ptr() != weights[0].data_ptr():
            with torch.inference_mode(False):  # what is made in it could not be trained through
                self._stacked = _stack(weights)
        return self._stacked

    @property
    def bias(self) -> Tensor | None:
        """The biases one after the other; None where the layers have none."""
        biases = [base.bias for base in self._bases]
        if biases[0] is None:
            return None
        return torch.cat([bias.detach() for bias in biases]) if len(biases) > 1 else biases[0].detach()

    def unpack(self) -> Tensor:
        """Return packed W, shape (outputs, inputs), in the dtype that it had before packing."""
        return torch.cat([dense_weight(base) for base in self._bases])

    def norms(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the norms of the rows of W + B A, shape (outputs,), in float32 at least.

        Args:
            a: shape (ranks, inputs).
            b: shape (outputs, ranks), scaled.
        """
        weight = self.weight
        dense = (self.unpack() if weight is None else weight).to(a.dtype)
        wide = torch.promote_types(a.dtype, torch.float32)
        if self._squares is None or self._squares.device != a.device:
            self._squares = dense.to(wide).square().sum(1)
        crossed, ours = (dense @ a.mT).to(wide), (a @ a.mT).to(wide)
        lower = b.to(wide)
        return (self._squares + ((2 * crossed + lower @ ours) * lower).sum(1)).clamp_min(0).sqrt()

    def with_adapters(self, adapters: list[Any]) -> Linear:
        """Return what a product with these layers needs: one adapter at most for a run, or a batched one."""
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
    stacked = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, stacked.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return stacked


class Adapters:
    """The adapters of groups, converted together once for each forward pass (see `adapter_matrices`).

    Args:
        groups: of linear layers, wrapped by PEFT or not.
        dtype: of the arithmetic.
    """

    def __init__(self, groups: list[Group], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.groups = groups
        self.ranks = [[_rank(module) for module in group.modules] for group in groups]
        self._modules = [
            module
            for group, ranks in zip(groups, self.ranks, strict=True)
            for module, rank in zip(group.modules, ranks, strict=True)
            if rank
        ]
        self._layout = layout_of([self])

    @property
    def is_lora(self) -> bool:
        """Whether there are adapters, they are switched on, and none is DoRA's."""
        live = bool(self._modules) and not self._modules[0].disable_adapters
        return live and all(_magnitude(module) is None for module in self._modules)

    @property
    def dropout(self) -> float:
        """That of the adapters' inputs in training."""
        drop = self._modules[0].lora_dropout[ADAPTER] if self._modules else None
        return float(drop.p) if isinstance(drop, nn.Dropout) else 0.0

    def matrices_of_groups(self) -> list[list[nn.Parameter]]:
        """Return A and B of each module with an adapter, by group; groups without any are left out."""
        return [
            [
                matrix[ADAPTER].weight
                for module, rank in zip(group.modules, ranks, strict=True)
                if rank
                for matrix in (module.lora_A, module.lora_B)
            ]
            for group, ranks in zip(self.groups, self.ranks, strict=True)
            if any(ranks)
        ]

    @property
    def first_adapted(self) -> int:
        """The number of the first group with an adapter; how many there are, where none has one."""
        return next((number for number, ranks in enumerate(self.ranks) if any(ranks)), len(self.ranks))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every module, and DoRA's magnitudes."""
        magnitudes = [magnitude for module in self._modules if (magnitude := _magnitude(module)) is not None]
        return [*self._matrices, *magnitudes]

    @property
    def _matrices(self) -> list[nn.Parameter]:
        return [matrix for of_group in self.matrices_of_groups() for matrix in of_group]

    def convert(self, training: bool, generator: torch.Generator | None = None) -> list[Adapter | None]:
        """Return the adapter of each group as it is now; None where there is none, or it is switched off.

        Args:
            training: dropout is live.
            generator: of its masks; None is torch's own.
        """
        if not self._modules or self._modules[0].disable_adapters:
            return [None] * len(self.ranks)
        matrices = iter(self._layout.convert(self._matrices, self.dtype))
        dropout = self.dropout if training else 0.0
        adapters: list[Adapter | None] = []
        for group, ranks in zip(self.groups, self.ranks, strict=True):
            if any(ranks):
                a, b = next(matrices)
                parts = AdapterParts(ranks, group.outputs, dropout, generator)
                adapters.append(Adapter(a, b, self._factor(group, a, b), parts))
            else:
                adapters.append(None)
        return adapters

    def _factor(self, group: Group, a: Tensor, b: Tensor) -> Tensor | None:
        """Return DoRA's c of a group, 1 where a module has no magnitude; None where none has."""
        magnitudes = [_magnitude(module) for module in group.modules]
        if all(magnitude is None for magnitude in magnitudes):
            return None
        norms = group.norms(a.detach(), b.detach()).split(group.outputs)
        parts = [
            torch.ones_like(norm) if magnitude is None else magnitude / norm
            for magnitude, norm in zip(magnitudes, norms, strict=True)
        ]
        return torch.cat(parts)


def layout_of(adapters: Sequence[Adapters]) -> AdapterMatrices:
    """Return the places of the parameters of runs that adapt the same modules, each as large as in the largest run."""
    first = adapters[0]
    blocks: list[Block] = []
    shapes: list[GroupShape] = []
    for number, ranks in enumerate(most_ranks(adapters)):
        if not any(ranks):
            continue
        group = first.groups[number]
        for run, one in enumerate(adapters):
            rank = output = 0
            for module, own, most, width in zip(
                one.groups[number].modules, one.ranks[number], ranks, group.outputs, strict=True
            ):
                if own:
                    places = slice(rank, rank + own), slice(output, output + width)
                    blocks.append(Block(len(shapes), *places, float(module.scaling[ADAPTER]), run))
                rank, output = rank + most, output + width
        shapes.append(GroupShape(group.inputs, sum(group.outputs), sum(ranks)))
    return AdapterMatrices(blocks, shapes, len(adapters))


def most_ranks(adapters: Sequence[Adapters]) -> list[list[int]]:
    """Return for each module of each group its rank in the run where that is the largest; 0 where it has none."""
    of_groups = zip(*(one.ranks for one in adapters), strict=True)
    return [[max(own) for own in zip(*of_runs, strict=True)] for of_runs in of_groups]


def _rank(module: Any) -> int:
    return len(module.lora_A[ADAPTER].weight) if hasattr(module, "lora_A") else 0


def _magnitude(module: Any) -> nn.Parameter | None:
    magnitudes = getattr(module, "lora_magnitude_vector", {})
    return magnitudes[ADAPTER].weight if ADAPTER in magnitudes else None
