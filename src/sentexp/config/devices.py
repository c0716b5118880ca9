"""What only some devices can do, as far as a configuration decides it, before any library is imported."""

from sentexp.config.lora import Lora
from sentexp.config.optim import OptimizerName
from sentexp.config.peft import PeftConfig
from sentexp.config.peft_methods import method_name
from sentexp.config.task import TaskConfig
from sentexp.config.trainer import Precision, Strategy, TrainerConfig
from sentexp.errors import require

ON_GPUS = (OptimizerName.adamw_8bit, OptimizerName.paged_adamw_32bit, OptimizerName.paged_adamw_8bit)
"""Optimizers that compute on a CUDA GPU alone."""
NO_GPU = "{key}=gpu, but no CUDA GPU is visible here: use {key}=cpu or auto."


def check_devices(trainer: TrainerConfig, optim: OptimizerName, peft: PeftConfig, task: TaskConfig) -> None:
    """Refuse what the device that is named cannot do, and CUDA graphs of what cannot be recorded."""
    on_cpu = trainer.accelerator == "cpu"
    require(
        not on_cpu or trainer.precision is not Precision.fp16,
        "trainer.precision=fp16 needs a CUDA GPU: use trainer.precision=bf16, fp32 or auto on the CPU.",
    )
    require(not on_cpu or optim not in ON_GPUS, f"optim={optim.name} needs a CUDA GPU: use optim=adamw on the CPU.")
    obstacle = "this run is on the CPU, which has none" if on_cpu else graph_obstacle(trainer, optim, peft, task)
    require(trainer.cuda_graphs is not True or not obstacle, refused_graphs(obstacle))


def graph_obstacle(trainer: TrainerConfig, optim: OptimizerName, peft: PeftConfig, task: TaskConfig) -> str:
    """Return what in a configuration cannot be recorded as CUDA graphs; nothing where all can."""
    beside = isinstance(peft, Lora) and peft.modules_to_save
    obstacles = {
        f"peft={method_name(peft)} is none of LoRA, QLoRA and DoRA": not isinstance(peft, Lora),
        f"peft.modules_to_save={beside} trains modules of the backbone": bool(beside),
        f"optim={optim.name} is not adamw": optim is not OptimizerName.adamw,
        f"trainer={trainer.strategy.name} has several processes": trainer.strategy is not Strategy.single,
        "task.r_drop reads every batch twice": task.r_drop > 0,
        "task.neftune_alpha draws noise for it": task.neftune_alpha > 0,
        "trainer.unfreeze changes what trains": trainer.unfreeze is not None,
        "trainer.padding_free=false pads rows": not trainer.padding_free,
        "trainer.compile=true compiles them": trainer.compile,
        "trainer.gradient_checkpointing=true computes some of them again": trainer.gradient_checkpointing,
        "trainer.precision=fp16 scales losses by what came of the last step": trainer.precision is Precision.fp16,
    }
    return next((reason for reason, applies in obstacles.items() if applies), "")


def refused_graphs(obstacle: str) -> str:
    """Return why `trainer.cuda_graphs=true` is refused."""
    return f"trainer.cuda_graphs=true records the kernels of a step, and {obstacle}: leave it at auto."
