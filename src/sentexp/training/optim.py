"""Optimizer and schedule from their configuration."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sentexp.config import OptimConfig, OptimizerName, Schedule
from sentexp.errors import UserError, require
from sentexp.models.layer_depth import layer_depths
from sentexp.models.structure import base_of
from sentexp.training.joint_optimizer import JointOptimizer
from sentexp.training.lion import Lion

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Groups = list[dict[str, Any]]


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
        UserError: a paged optimizer without a CUDA GPU, an optimizer that is not installed, or nothing for it to do.
    """
    owned = set() if head is None else {id(parameter) for parameter in head.parameters()}
    muons, scales, ratios = _inner_matrices(optim, model, owned), _scales(optim, model), _lora_plus(optim, model)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            lr = optim.head_lr or optim.lr if id(parameter) in owned else optim.lr * ratios.get(id(parameter), 1.0)
            decay = optim.weight_decay if parameter.ndim > 1 else 0.0
            key = (lr * scales.get(id(parameter), 1.0), decay, id(parameter) in muons)
            groups.setdefault(key, []).append(parameter)
    matrices, rest = (
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay, inner), p in groups.items() if inner is wanted]
        for wanted in (True, False)
    )
    if optim.name is OptimizerName.muon:
        return _muon(optim, matrices, rest, fused)
    return _create(optim, rest, device, fused)


def _inner_matrices(optim: OptimConfig, model: nn.Module, head: set[int]) -> set[int]:
    """Return the ids of what Muon moves: matrices, but for the head and for those that have a row for each token."""
    if optim.name is not OptimizerName.muon:
        return set()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    output = getattr(base_of(model), "get_output_embeddings", lambda: None)()
    ends = {id(parameter) for table in [*tables, output] if table is not None for parameter in table.parameters()}
    return {id(parameter) for parameter in model.parameters() if parameter.ndim == 2} - ends - head  # noqa: PLR2004


def _scales(optim: OptimConfig, model: nn.Module) -> dict[int, float]:
    """Return what the learning rate of each parameter is multiplied by, by its id; nothing where all have the same."""
    if optim.layer_decay == 1:
        return {}
    depths = layer_depths(model, f"optim.layer_decay={optim.layer_decay}")
    return {key: optim.layer_decay ** (depths.layers + 1 - depth) for key, depth in depths.of.items()}


def _lora_plus(optim: OptimConfig, model: nn.Module) -> dict[int, float]:
    """Return what LoRA+ (Hayou et al. 2024) multiplies rates by, those of B and as in PEFT of vectors, by their ids."""
    if optim.lora_plus_ratio is None:
        return {}
    named = model.named_parameters()
    return {id(value): optim.lora_plus_ratio for name, value in named if "lora_B" in name or value.ndim == 1}


def _create(optim: OptimConfig, groups: Groups, device: torch.device, fused: bool) -> "Optimizer":
    betas = optim.betas[0], optim.betas[1]
    moments: dict[str, Any] = {"lr": optim.lr, "betas": betas, "eps": optim.eps}
    match optim.name:
        case OptimizerName.adamw:
            return torch.optim.AdamW(groups, **moments, fused=fused)
        case OptimizerName.adafactor:
            return torch.optim.Adafactor(groups, lr=optim.lr)
        case OptimizerName.sgd:
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused)
        case OptimizerName.lion:
            return Lion(groups, optim.lr, betas)
        case OptimizerName.schedule_free:
            return _schedule_free(groups, moments)
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


def _muon(optim: OptimConfig, matrices: Groups, rest: Groups, fused: bool) -> "Optimizer":
    """Return Muon over the matrices inside of the model, with steps of AdamW's size, and AdamW over the rest."""
    require(
        bool(matrices),
        "optim=muon moves matrices between embeddings and head, and none of them trains: use optim=adamw, or another "
        "peft.",
    )
    muon = torch.optim.Muon(matrices, lr=optim.lr, momentum=optim.momentum, adjust_lr_fn="match_rms_adamw")
    betas = optim.betas[0], optim.betas[1]
    others = [torch.optim.AdamW(rest, lr=optim.lr, betas=betas, eps=optim.eps, fused=fused)] if rest else []
    return JointOptimizer(muon, *others)


def _schedule_free(groups: Groups, moments: dict[str, Any]) -> "Optimizer":
    """Return the optimizer in its mode of training, in which it stays: see `sentexp.training.averaging`."""
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise UserError(
            "optim=schedule_free is in the package schedulefree, which is not installed: pip install "
            "'sentexp[optimizers]', or use optim=adamw."
        ) from None
    optimizer: Optimizer = AdamWScheduleFree(groups, **moments)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def build_schedule(optim: OptimConfig, optimizer: "Optimizer", total_steps: int) -> "LRScheduler":
    """Return the learning-rate schedule over `total_steps` optimizer steps, warm-up first."""
    from transformers import get_scheduler

    warmup = optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_ratio * total_steps)
    name = "constant_with_warmup" if optim.schedule is Schedule.constant else optim.schedule.name
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)  # type: ignore[no-any-return]
