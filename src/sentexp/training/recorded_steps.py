"""Optimizer steps that are recorded as CUDA graphs; the first of a run is compared with the usual way."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sentexp.data.datamodule import Batch
from sentexp.models.cuda_graphs import Graphs, Recorded, is_near, rounding_share

if TYPE_CHECKING:
    from torch.optim import Optimizer

UPDATE = 0.1
"""How far the whole of an update may be off: AdamW divides by the size of gradients, that of rounding included."""


class Step(NamedTuple):
    """What an optimizer step leaves: the loss, and the gradients after clipping."""

    loss: Tensor
    gradients: list[Tensor]


class TrainingGraphs:
    """Optimizer steps as graphs: forward and backward pass, clipping, and AdamW.

    Args:
        optimizer: AdamW of one kernel.
        loss: returns the loss of a batch.
        clip: clips the gradients.
        context: of the loss: autocast.
    """

    def __init__(
        self,
        optimizer: "Optimizer",
        loss: Callable[[Batch], Tensor],
        clip: Callable[["Optimizer"], None],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.graphs = Graphs(self._replayable_step, self._check)
        self._optimizer, self._loss, self._clip, self._context = optimizer, loss, clip, context
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._rates = [torch.tensor(0.0, device=group["params"][0].device) for group in optimizer.param_groups]

    def get(self, batch: Batch) -> Callable[[], Tensor] | None:
        """Return a function that does the whole optimizer step of a batch, and returns its loss; None: as usual."""
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        batch = batch._replace(batch_rows=0)  # which is logged, and no part of the shape
        recorded = self.graphs.get(batch)
        for parameter in self._parameters:
            parameter.grad = None  # those of a recording are its own
        return None if recorded is None else partial(self._replay, recorded, batch)

    def _replay(self, recorded: Recorded[Step], batch: Batch) -> Tensor:
        return recorded(batch).loss.clone()

    def _replayable_step(self, batch: Batch) -> Step:
        with self._rates_as_tensors():
            return self._step(batch)

    def _step(self, batch: Batch) -> Step:
        for parameter in self._parameters:
            parameter.grad = None
        with self._context():
            loss = self._loss(batch)
        loss.backward()
        self._clip(self._optimizer)
        self._optimizer.step()
        return Step(loss.detach(), [parameter.grad for parameter in self._parameters if parameter.grad is not None])

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """Let the optimizer read its learning rates when a graph is replayed, not when it is recorded."""
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group |= {"lr": rate, "capturable": True}
        try:
            yield
        finally:
            for group, lr in zip(groups, rates, strict=True):
                group |= {"lr": lr, "capturable": False}

    def _check(self, recorded: Recorded[Step], batch: Batch) -> str:
        """Compare loss, gradients and update of a step with the usual way; both begin with the same weights and masks.

        Returns:
            What differs; empty where nothing does.
        """
        weights = [parameter.detach().clone() for parameter in self._parameters]
        moments = [value for state in self._optimizer.state.values() for value in state.values()]
        kept = [value.clone() for value in moments]
        seed = torch.initial_seed()

        def after(step: Callable[[Batch], Step]) -> tuple[Tensor, Tensor, Tensor]:
            torch.manual_seed(seed)
            loss, gradients = step(batch)
            pairs = zip(self._parameters, weights, strict=True)
            update = _flat([parameter.detach() - weight for parameter, weight in pairs])
            outcome = loss.float().clone(), _flat(gradients), update
            with torch.no_grad():
                for tensor, value in zip([*self._parameters, *moments], [*weights, *kept], strict=True):
                    tensor.copy_(value)
            return outcome

        usual, replayed = after(self._step), after(recorded)
        with self._context():
            rounding = rounding_share()
        limits = {"loss": rounding, "gradients": rounding, "update": UPDATE}
        for (what, limit), expected, found in zip(limits.items(), usual, replayed, strict=True):
            if not is_near(found, expected, limit):
                return f"the {what} of a replayed step would differ from the usual"
        return ""


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])
