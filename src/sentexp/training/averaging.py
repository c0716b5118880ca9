"""Means of the weights of several steps, which are evaluated and saved in place of the last ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor, nn

from sentexp.config import Average, OptimConfig, OptimizerName, TrainerConfig
from sentexp.errors import require

Weights = dict[str, Tensor]


def weight_average(model: nn.Module, trainer: TrainerConfig, optim: OptimConfig) -> "list[WeightAverage]":
    """Return the callback of `trainer.average`, or of an optimizer that averages itself; none where there is no mean.

    Args:
        model: whose weights train.
        trainer: the loop.
        optim: the optimizer.
    """
    if optim.name is OptimizerName.schedule_free:
        return [ScheduleFreeAverage(model)]
    match trainer.average:
        case Average.ema:
            return [MovingAverage(model, trainer.average_decay)]
        case Average.last_k:
            return [LastWeights(model, trainer.average_checkpoints, trainer.average_interval)]
    return []


def check_interval(interval: int, steps: int) -> None:
    """Refuse an interval in which a training of so many steps takes no weights.

    Raises:
        UserError: says so.
    """
    require(
        interval <= steps,
        f"trainer.average_interval={interval} is more than the {steps} steps of this run, and averages none: use less.",
    )


class WeightAverage(L.Callback, ABC):
    """Puts a mean of the weights into the model for each evaluation of a training.

    It stays there until the next batch: so what is saved as the best is the mean. A state to resume from holds the
    weights of the training, and the mean of the step, so what saves it must come later.

    Args:
        model: whose weights train.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._own: Weights = {}
        self._step_before = 0

    @abstractmethod
    def mean(self, trainer: L.Trainer) -> Mapping[str, Tensor]:
        """Return the mean of the weights that have one, by their names."""

    def update(self, step: int) -> None:
        """Take the weights after so many optimizer steps into the mean."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Train on with the weights of the training; note the optimizer step."""
        self._leave()
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Take the weights of an optimizer step into the mean."""
        if trainer.global_step > self._step_before:
            self.update(trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Evaluate the mean."""
        if not self._own:
            mean = self.mean(trainer)
            with torch.no_grad():
                self._own = {name: self.weights[name].clone() for name in mean}
                for name, value in mean.items():
                    self.weights[name].copy_(value)

    def on_save_checkpoint(self, *_: Any) -> None:
        """Let a state to resume from hold the weights of the training, which the module writes into it after this."""
        self._leave()

    def _leave(self) -> None:
        """Put the weights of the training back, to the last bit."""
        with torch.no_grad():
            for name, value in self._own.items():
                self.weights[name].copy_(value)
        self._own = {}


class MovingAverage(WeightAverage):
    """m <- d m + (1 - d) w after step t, with d = min(decay, 1 - 1 / t) (Tarvainen & Valpola 2017, section 3).

    So the first steps have equal parts in it, and the weights at the start none.

    Args:
        model: whose weights train.
        decay: the share of the mean that stays in a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self._mean: Weights = {}

    def mean(self, trainer: L.Trainer) -> Weights:
        """Return the mean so far."""
        del trainer
        return self._mean

    def update(self, step: int) -> None:
        """Move the mean."""
        share = max(1 - self.decay, 1 / step)
        for name, weight in self.weights.items():
            mean = self._mean.setdefault(name, weight.detach().clone())
            if mean.device != weight.device:  # it was read from a checkpoint
                mean = self._mean[name] = mean.to(weight.device)
            mean.lerp_(weight.detach(), share)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean."""
        return {"mean": {name: value.cpu() for name, value in self._mean.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a mean."""
        self._mean = dict(state_dict["mean"])


class LastWeights(WeightAverage):
    """The mean of the last weights that were taken, some optimizer steps apart (Vaswani et al. 2017, section 6.1).

    They are kept on the CPU.

    Args:
        model: whose weights train.
        count: how many there are at most.
        interval: optimizer steps between them.
    """

    def __init__(self, model: nn.Module, count: int, interval: int) -> None:
        super().__init__(model)
        self.count, self.interval = count, interval
        self._taken: list[Weights] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse an interval that takes nothing."""
        del pl_module
        check_interval(self.interval, int(trainer.estimated_stepping_batches))

    def mean(self, trainer: L.Trainer) -> Weights:
        """Return the mean of what was taken; nothing before that."""
        del trainer
        if not self._taken:
            return {}
        return {name: torch.stack([weights[name] for weights in self._taken]).mean(0) for name in self.weights}

    def update(self, step: int) -> None:
        """Take the weights where it is time."""
        if step % self.interval == 0:
            taken = {name: weight.detach().to("cpu", copy=True) for name, weight in self.weights.items()}
            self._taken = [*self._taken, taken][-self.count :]

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken."""
        return {"taken": self._taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from it."""
        self._taken = list(state_dict["taken"])


class ScheduleFreeAverage(WeightAverage):
    """The mean x of `optim=schedule_free`, from y, where it finds gradients, and z, which it moves by them.

    As y = (1 - b) z + b x, x is y + (1 - 1 / b) (z - y) (Defazio et al. 2024, eq. 4). The optimizer's own `eval` and
    `train` do the same, and lose the last bits of y on the way.
    """

    def mean(self, trainer: L.Trainer) -> Weights:
        """Return x of the weights that have moved."""
        (optimizer,) = trainer.optimizers
        mean = {}
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        for name, weight in self.weights.items():
            moved = optimizer.state[weight].get("z") if weight in optimizer.state else None
            if moved is not None:
                share = 1 - 1 / groups[id(weight)]["betas"][0]
                mean[name] = weight.detach().lerp(moved.to(weight.device), share)
        return mean
