"""Shards of a model: each process holds a part of every parameter, and a layer is whole only while it computes."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sentexp.distributed import processes

LIBRARY = "torch.distributed.fsdp"
"""Takes a second to import, and nothing is sharded before it is."""


def shard(parts: Sequence[nn.Module], device: torch.device) -> None:
    """Shard a model over all processes, part by part; on a GPU, one part at a time moves there.

    Every part is whole during its own pass only, so that elsewhere `model.parameters()` are the shards.

    Args:
        parts: of the model, the inner ones first; see `shardable_parts`.
        device: where the run computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model was sharded."""
    if LIBRARY not in sys.modules:
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def gathered(tensor: Tensor) -> Tensor:
    """Return a shard put together, on the CPU of the main process; elsewhere nothing of it is kept.

    All processes must ask for it. A tensor that is not a shard is returned as it is.
    """
    if LIBRARY not in sys.modules:
        return tensor
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if processes.is_main() else torch.empty(0)


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a whole value, if `like` is one."""
    if LIBRARY not in sys.modules:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def gathered_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the whole weights of a sharded model by name, tied ones as one tensor; None if it is not sharded."""
    if not is_sharded(model):
        return None
    tensors = model.state_dict(keep_vars=True)
    different = {id(tensor): tensor for tensor in tensors.values()}
    weights = {key: gathered(tensor.detach()) for key, tensor in different.items()}
    return {name: weights[id(tensor)] for name, tensor in tensors.items()}
