"""Lion: each weight moves by the sign of a running mean of its gradients (Chen et al. 2023, arXiv:2302.06675)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """The optimizer that a search over programs has found (the paper's algorithm 2).

    Args:
        params: parameters, or groups of them with `lr` and `weight_decay` of their own.
        lr: the step of every weight; a third to a tenth of AdamW's.
        betas: of the mean in an update, and of the mean that is kept.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the weights that have a gradient; return what the closure does, which finds the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(mean.lerp(parameter.grad, 1 - beta1).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 1 - beta2)
        return loss
