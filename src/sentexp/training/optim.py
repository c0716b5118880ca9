"""Optimizer and schedule from their configuration."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sentexp.config import OptimConfig, OptimizerName, Schedule
from sentexp.errors import require

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def build_optimizer(
    optim: OptimConfig, model: nn.Module, head: nn.Module | None, device: torch.device, fused: bool = True
) -> "Optimizer":
    """Return the optimizer over the parameters that train; matrices are decayed, vectors are not.

    Args:
        optim: its configuration.
        model: whose parameters train.
        head: the part of it that has a learning rate of its own.
        device: where it is.
        fused: let AdamW and SGD step in one kernel.

    Raises:
        UserError: a paged optimizer without a CUDA GPU.
    """
    owned = set() if head is None else {id(parameter) for parameter in head.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    ratios = _lora_plus(optim, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            lr = optim.head_lr or optim.lr if id(parameter) in owned else optim.lr * ratios.get(id(parameter), 1.0)
            groups.setdefault((lr, optim.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    listed = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    return _create(optim, listed, device, fused)


def _lora_plus(optim: OptimConfig, model: nn.Module) -> dict[int, float]:
    """Return what LoRA+ (Hayou et al. 2024) multiplies rates by, those of B and as in PEFT of vectors, by their ids."""
    if optim.lora_plus_ratio is None:
        return {}
    named = model.named_parameters()
    return {id(value): optim.lora_plus_ratio for name, value in named if "lora_B" in name or value.ndim == 1}


def _create(optim: OptimConfig, groups: list[dict[str, Any]], device: torch.device, fused: bool) -> "Optimizer":
    moments: dict[str, Any] = {"lr": optim.lr, "betas": (optim.betas[0], optim.betas[1]), "eps": optim.eps}
    match optim.name:
        case OptimizerName.adamw:
            return torch.optim.AdamW(groups, **moments, fused=fused)
        case OptimizerName.adafactor:
            return torch.optim.Adafactor(groups, lr=optim.lr)
        case OptimizerName.sgd:
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused)
    require(
        device.type == "cuda",
        f"optim={optim.name.name} needs a CUDA GPU: use optim=adamw on the CPU.",
    )
    import bitsandbytes as bnb

    kinds = {
        OptimizerName.adamw_8bit: bnb.optim.AdamW8bit,
        OptimizerName.paged_adamw_32bit: bnb.optim.PagedAdamW32bit,
        OptimizerName.paged_adamw_8bit: bnb.optim.PagedAdamW8bit,
    }
    return kinds[optim.name](groups, **moments)  # type: ignore[no-any-return]


def build_schedule(optim: OptimConfig, optimizer: "Optimizer", total_steps: int) -> "LRScheduler":
    """Return the learning-rate schedule over `total_steps` optimizer steps, warm-up first."""
    from transformers import get_scheduler

    warmup = optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_ratio * total_steps)
    name = "constant_with_warmup" if optim.schedule is Schedule.constant else optim.schedule.name
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)  # type: ignore[no-any-return]
