"""Which runs record their steps as CUDA graphs, and why others do not."""

import torch

from sentexp.config import Config, graph_obstacle, refused_graphs
from sentexp.errors import require
from sentexp.models.fast.support import ARCHITECTURES


def uses_cuda_graphs(config: Config, device: torch.device, architecture: str) -> bool:
    """Tell whether the steps of a run are recorded, as `trainer.cuda_graphs` says.

    Args:
        config: of the run.
        device: where it computes.
        architecture: transformers' name of the backbone's.

    Raises:
        UserError: `trainer.cuda_graphs=true`, and something cannot be recorded.
    """
    wanted = config.trainer.cuda_graphs
    if wanted is False:
        return False
    obstacle = _obstacle(config, device, architecture)
    require(wanted is not True or not obstacle, refused_graphs(obstacle))
    return not obstacle


def _obstacle(config: Config, device: torch.device, architecture: str) -> str:
    """Return what in a run cannot be recorded."""
    if device.type != "cuda":
        return "this run is on the CPU, which has none"
    if architecture not in ARCHITECTURES:
        return f"a {architecture} is none of {', '.join(ARCHITECTURES)}"
    batches = config.trainer.accumulate_grad_batches
    if batches > 1:
        return f"trainer.accumulate_grad_batches={batches} makes a step of several batches"
    return graph_obstacle(config.trainer, config.optim.name, config.peft, config.task)
