"""Several optimizers as one: Muon moves matrices only, and AdamW the other parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class JointOptimizer(Optimizer):
    """Steps several optimizers together.

    Its groups are theirs, so that schedules and clipping reach all of them; its state is a list of theirs.

    Args:
        parts: optimizers with parameters of their own.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        rate = {"lr": parts[0].defaults["lr"]}  # which a polynomial schedule asks for
        super().__init__([group for part in parts for group in part.param_groups], rate)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all of them; return what the closure does, which finds the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all of them."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # they are new
