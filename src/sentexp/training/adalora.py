"""What AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) does besides: ranks by importance, and orthogonal factors."""

from functools import partial
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor, nn

from sentexp.config import PeftConfig, PeftMethod
from sentexp.errors import require
from sentexp.training.module import ClassifierModule

KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator knows of the importance of each number, by the names of its attributes."""


def is_adalora(peft: PeftConfig) -> bool:
    """Tell whether a method is AdaLoRA with all of its keys (`peft=adalora`)."""
    return isinstance(peft, PeftMethod) and peft.type == "ADALORA"


def rank_allocation(model: nn.Module, peft: PeftConfig) -> list[L.Callback]:
    """Return the callback of AdaLoRA; other methods need none."""
    return [RankAllocation(model)] if is_adalora(peft) else []


def check_phases(config: Any, steps: int) -> None:
    """Refuse ranks that do not shrink, and phases that leave no steps in which they could.

    Args:
        config: of the method, sentexp's or PEFT's, whose keys have the same names.
        steps: of the whole training.

    Raises:
        UserError: says what does not fit.
    """
    require(
        config.tinit + config.tfinal < steps and config.target_r < config.init_r,
        f"AdaLoRA shrinks ranks from peft.init_r={config.init_r} to peft.target_r={config.target_r}, which must be "
        f"less, between step peft.tinit={config.tinit} and the last peft.tfinal={config.tfinal} of this run's {steps} "
        "steps.",
    )


class RankAllocation(L.Callback):
    """Shares out ranks after each optimizer step, and adds the loss that keeps the factors orthogonal.

    It must precede what saves checkpoints, which must hold the ranks of the step.

    Args:
        model: with the adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tuner: Any = model.base_model
        self.config: Any = model.peft_config["default"]  # type: ignore[index]
        self._step_before = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell PEFT how many steps there are."""
        assert isinstance(pl_module, ClassifierModule)
        self.config.total_step = int(trainer.estimated_stepping_batches)
        check_phases(self.config, self.config.total_step)
        pl_module.penalty = partial(orthogonality_loss, self.tuner, self.config.orth_reg_weight)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the optimizer step, to know whether this micro-batch completes the next one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Share out the ranks, while the gradients of the step are still there."""
        if trainer.global_step > self._step_before:
            self.tuner.update_and_allocate(self._step_before)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {name: dict(getattr(self.tuner.rankallocator, name)) for name in KEPT} | {
            "rank_pattern": self.config.rank_pattern
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        for name in KEPT:
            setattr(self.tuner.rankallocator, name, dict(state_dict[name]))
        self.config.rank_pattern = state_dict["rank_pattern"]


def orthogonality_loss(model: nn.Module, weight: float) -> Tensor:
    """Return the weighted mean distance of the factors from orthogonal ones (the paper's equation 4), a scalar.

    That is the Frobenius norm of A A^T - I and of B^T B - I, over all targets.
    """
    factors = [(name, value) for name, value in model.named_parameters() if "lora_A" in name or "lora_B" in name]
    products = [value @ value.T if "lora_A" in name else value.T @ value for name, value in factors]
    distances = [torch.linalg.matrix_norm(product - torch.eye(len(product)).to(product)) for product in products]
    return weight * torch.stack(distances).mean()
