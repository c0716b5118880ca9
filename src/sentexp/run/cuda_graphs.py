"""Which runs record their steps as CUDA graphs, and why others do not."""

import torch

from sentexp.config import Config, Lora, OptimizerName, Precision, Strategy, method_name
from sentexp.errors import require
from sentexp.models.fast.support import ARCHITECTURES


def uses_cuda_graphs(config: Config, device: torch.device, precision: Precision, architecture: str) -> bool:
    """Tell whether the steps of a run are recorded, as `trainer.cuda_graphs` says.

    Args:
        config: of the run.
        device: where it computes.
        precision: of the arithmetic.
        architecture: transformers' name of the backbone's.

    Raises:
        UserError: `trainer.cuda_graphs=true`, and something cannot be recorded.
    """
    wanted = config.trainer.cuda_graphs
    if wanted is False:
        return False
    obstacle = _obstacle(config, device, precision, architecture)
    require(
        wanted is not True or not obstacle,
        f"trainer.cuda_graphs=true records the kernels of a step, and {obstacle}: leave it at auto.",
    )
    return not obstacle


def _obstacle(config: Config, device: torch.device, precision: Precision, architecture: str) -> str:
    """Return what in a run cannot be recorded."""
    trainer, peft = config.trainer, config.peft
    beside = isinstance(peft, Lora) and peft.modules_to_save
    obstacles = {
        "this run is on the CPU, which has none": device.type != "cuda",
        f"a {architecture} is none of {', '.join(ARCHITECTURES)}": architecture not in ARCHITECTURES,
        f"peft={method_name(peft)} is none of LoRA, QLoRA and DoRA": not isinstance(peft, Lora),
        f"peft.modules_to_save={beside} trains modules of the backbone": bool(beside),
        f"optim={config.optim.name.name} is not adamw": config.optim.name is not OptimizerName.adamw,
        f"trainer={trainer.strategy.name} has several processes": trainer.strategy is not Strategy.single,
        "task.r_drop reads every batch twice": config.task.r_drop > 0,
        "task.neftune_alpha draws noise for it": config.task.neftune_alpha > 0,
        "trainer.unfreeze changes what trains": trainer.unfreeze is not None,
        "trainer.padding_free=false pads rows": not trainer.padding_free,
        "trainer.compile=true compiles them": trainer.compile,
        "trainer.gradient_checkpointing=true computes some of them again": trainer.gradient_checkpointing,
        f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} makes a step of several batches": (
            trainer.accumulate_grad_batches > 1
        ),
        "trainer.precision=fp16 scales losses by what came of the last step": precision is Precision.fp16,
    }
    return next((reason for reason, applies in obstacles.items() if applies), "")
