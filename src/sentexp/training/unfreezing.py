"""Gradual unfreezing: layers begin to train one after the other, from the top (ULMFiT: Howard & Ruder 2018)."""

from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
from torch import nn
from torch.optim import Optimizer

from sentexp.errors import require
from sentexp.models.layer_depth import layer_depths


def gradual_unfreezing(model: nn.Module, share: float | None) -> list[L.Callback]:
    """Return the callback of `trainer.unfreeze`; without a share all layers train from the first step on."""
    return [] if share is None else [GradualUnfreezing(model, share)]


class GradualUnfreezing(L.Callback):
    """Lets the k-th of n parts that train, from the top, begin after `share` * (k - 1) / (n - 1) of the steps.

    The parts are what is above the last layer, each layer, and what is below the first. Those that have not begun get
    no gradients, so that the optimizer leaves them as they are, and their norm does not count in clipping.

    Args:
        model: whose parameters train.
        share: of all optimizer steps.

    Raises:
        UserError: there is one part only, or its layers share weights.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        key = f"trainer.unfreeze={share}"
        depths = layer_depths(model, key)
        by_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                by_depth.setdefault(depths.of[id(parameter)], []).append(parameter)
        require(
            len(by_depth) > 1,
            f"{key} lets one layer begin to train after the other, and there are none to choose from: leave it null.",
        )
        self.share = share
        self.parts = [by_depth[depth] for depth in sorted(by_depth, reverse=True)]
        self._steps = 0.0

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count the steps in which layers begin."""
        self._steps = self.share * float(trainer.estimated_stepping_batches)

    def begun(self, step: int) -> int:
        """Return how many parts train after so many optimizer steps."""
        last = len(self.parts) - 1
        return sum(step * last >= self._steps * place for place in range(last + 1))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of what has not begun."""
        del pl_module, optimizer
        for part in self.parts[self.begun(trainer.global_step) :]:
            for parameter in part:
                parameter.grad = None
