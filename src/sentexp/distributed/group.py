"""The group of the processes of a run: how they find each other, and the channels of their messages."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sentexp.config import Strategy
from sentexp.distributed.launch import Launch
from sentexp.errors import require

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: the main one may fit baselines, or wait for another run's, meanwhile."""
SHUTDOWN_GRACE = timedelta(seconds=10)
"""How long a process that fails waits for the others, where they may be in the middle of a forward pass of shards."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that have joined, and the channel of their messages.

    Of a sharded model, those that fail first meet on an impatient channel: the others may wait elsewhere, for a layer.
    """

    launch: Launch
    channel: Any
    impatient: Any = None


def join(launch: Launch, strategy: Strategy, device: "torch.device") -> Group:
    """Join the other processes of the run.

    Raises:
        UserError: there are more processes than GPUs.
    """
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(_gpu(launch, torch.cuda.device_count()))
    if launch.launcher == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_NODELIST"])
        os.environ.setdefault("MASTER_ADDR", first)
        os.environ.setdefault("MASTER_PORT", str(15_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000))
        os.environ |= {"RANK": str(launch.rank), "WORLD_SIZE": str(launch.world_size)}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    channel = dist.new_group(backend="gloo", timeout=PATIENCE)  # messages are on the CPU
    is_sharded = strategy is Strategy.fsdp
    return Group(launch, channel, dist.new_group(backend="gloo", timeout=SHUTDOWN_GRACE) if is_sharded else None)


def _gpu(launch: Launch, visible: int) -> int:
    """Return the number of the GPU that is this process's."""
    if launch.launcher == "srun" and visible == 1:  # SLURM shows each task its own
        return 0
    require(
        launch.local_rank < visible,
        f"Process {launch.local_rank} of this machine (they count from 0) finds {visible} GPUs: start as many "
        "processes as there are GPUs (torchrun --nproc-per-node), or use trainer.accelerator=cpu.",
    )
    return launch.local_rank


def leave() -> None:
    """Leave the group."""
    import torch.distributed as dist

    dist.destroy_process_group()
