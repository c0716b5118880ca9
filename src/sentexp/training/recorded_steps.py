"""Optimizer steps that are recorded as CUDA graphs, of one run or of several that train together.

The first recording is compared with the usual way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sentexp.data.batch import Batch
from sentexp.models.cuda_graphs import Graphs, Recorded, is_near, rounding_share
from sentexp.models.fast.batched_lora import AdapterStack, can_be_stacked
from sentexp.models.fast.fused_forward import ForwardInput, fused_forward
from sentexp.models.fast.fusion_context import fused_run, reading, unfused
from sentexp.models.fast.llama import LlamaLayers

if TYPE_CHECKING:
    from torch.optim import Optimizer

UPDATE = 0.1
"""How far the whole of an update may be off: AdamW divides by the size of gradients, that of rounding included."""


class Step(NamedTuple):
    """What an optimizer step leaves: the loss of each run, and the gradients after clipping."""

    losses: list[Tensor]
    gradients: list[Tensor]


class Learner:
    """What the optimizer steps of a run are made of.

    Args:
        optimizer: AdamW of one kernel.
        layers: returns the layers that read the rows.
        loss: returns the loss of a batch.
        clip: clips the gradients.
        context: of the loss: autocast.
    """

    def __init__(
        self,
        optimizer: "Optimizer",
        layers: Callable[[], LlamaLayers],
        loss: Callable[[Batch], Tensor],
        clip: Callable[["Optimizer"], None],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.optimizer, self.layers, self.loss, self.clip, self.context = optimizer, layers, loss, clip, context
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device: torch.device = self.parameters[0].device
        self._rates = [torch.tensor(0.0, device=self.device) for _ in optimizer.param_groups]

    @property
    def moments(self) -> list[Tensor]:
        """What the optimizer keeps of each parameter."""
        return [value for state in self.optimizer.state.values() for value in state.values()]

    @property
    def gradients(self) -> list[Tensor]:
        """Those of the parameters that have any."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def forget_gradients(self) -> None:
        """Leave no gradient: those of a recording are its own."""
        for parameter in self.parameters:
            parameter.grad = None

    def update(self) -> None:
        """Clip the gradients, and step."""
        self.clip(self.optimizer)
        self.optimizer.step()

    def read_rates(self) -> None:
        """Let a recording have the learning rates of now."""
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def rates_as_tensors(self) -> Iterator[None]:
        """Let the optimizer read its learning rates when a graph is replayed, not when it is recorded."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group |= {"lr": rate, "capturable": True}
        try:
            yield
        finally:
            for group, lr in zip(groups, rates, strict=True):
                group |= {"lr": lr, "capturable": False}


class TrainingGraphs:
    """Optimizer steps as graphs: forward and backward pass, clipping, and AdamW.

    Args:
        learners: the runs, whose backbones are the same weights.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self._generators: list[torch.Generator] = []
        self._stack: AdapterStack | None = None
        if len(learners) > 1:
            self._generators = [torch.Generator(learner.device) for learner in learners]
            adapters = [learner.layers().adapters for learner in learners]
            self._stack = AdapterStack(adapters) if can_be_stacked(adapters) else None
        self._fused = 0
        self.graphs = Graphs(self._replayable_step, self._check, self._generators)

    @property
    def summary(self) -> str:
        """What became of it, for the record of a run."""
        return (
            f"{self.graphs.summary}, {self._fused} steps in graphs of several runs"
            if self._fused
            else self.graphs.summary
        )

    def with_others(self, others: "Sequence[TrainingGraphs]") -> "TrainingGraphs":
        """Return the steps of all these runs together."""
        return TrainingGraphs([learner for graphs in (self, *others) for learner in graphs.learners])

    def get(self, batch: Batch) -> Callable[[], Tensor] | None:
        """Return a function that does the whole optimizer step of a run, and returns its loss; None: as usual.

        In a fused sweep the step may have been done already, together with those of other runs.
        """
        batch = batch._replace(batch_rows=0)  # which is logged, and no part of the shape
        run = fused_run()
        done = None if run is None else run.step(self, batch)
        if done is not None:
            self._fused += 1
            return lambda: done
        with unfused():
            step = self.together((batch,), [torch.initial_seed()])
        return None if step is None else lambda: step()[0]

    def together(self, batches: tuple[Batch, ...], seeds: list[int]) -> Callable[[], list[Tensor]] | None:
        """Return a function that does the steps of all runs, and returns their losses; None: as usual.

        Args:
            batches: of the runs.
            seeds: of their dropout.
        """
        for learner in self.learners:
            learner.read_rates()
        recorded = self.graphs.get(batches)
        for learner in self.learners:
            learner.forget_gradients()
        if recorded is None:
            return None

        def replay() -> list[Tensor]:
            self._seed(seeds)
            with unfused():
                return [loss.clone() for loss in recorded(batches).losses]

        return replay

    def _seed(self, seeds: list[int]) -> None:
        for generator, seed in zip(self._generators, seeds, strict=False):  # a run by itself has torch's own
            generator.manual_seed(seed)

    def _replayable_step(self, batches: tuple[Batch, ...]) -> Step:
        with ExitStack() as stack:
            for learner in self.learners:
                stack.enter_context(learner.rates_as_tensors())
            return self._step(batches)

    def _step(self, batches: tuple[Batch, ...]) -> Step:
        for learner in self.learners:
            learner.forget_gradients()
        losses = self._losses(batches)
        torch.autograd.backward(losses)
        for learner in self.learners:
            learner.update()
        gradients = [gradient for learner in self.learners for gradient in learner.gradients]
        return Step([loss.detach() for loss in losses], gradients)

    def _losses(self, batches: tuple[Batch, ...]) -> list[Tensor]:
        if len(batches) == 1:
            with self.learners[0].context():
                return [self.learners[0].loss(batches[0])]
        runs = zip(self.learners, batches, self._generators, strict=True)
        inputs = [ForwardInput(learner.layers(), batch.texts, dropout=own) for learner, batch, own in runs]  # type: ignore[arg-type] # rows that are recorded are packed
        all_states = fused_forward(inputs, self._stack, as_one=True)
        losses = []
        for learner, batch, states in zip(self.learners, batches, all_states, strict=True):
            with reading(states), learner.context():
                losses.append(learner.loss(batch))
        return losses

    def _check(self, batches: tuple[Batch, ...]) -> Callable[[Recorded[Step]], str]:
        """Do a step in the usual way; return what compares loss, gradients and update of a recorded one with it.

        Both begin with the same weights and masks.
        """
        parameters = [parameter for learner in self.learners for parameter in learner.parameters]
        moments = [moment for learner in self.learners for moment in learner.moments]
        weights = [parameter.detach().clone() for parameter in parameters]
        kept = [value.clone() for value in moments]
        seed = torch.initial_seed()

        def after(step: Callable[[tuple[Batch, ...]], Step]) -> tuple[Tensor, Tensor, Tensor]:
            torch.manual_seed(seed)
            self._seed([seed + number for number in range(len(batches))])
            losses, gradients = step(batches)
            update = _flat([new.detach() - old for new, old in zip(parameters, weights, strict=True)])
            outcome = _flat(losses), _flat(gradients), update
            with torch.no_grad():
                for tensor, value in zip([*parameters, *moments], [*weights, *kept], strict=True):
                    tensor.copy_(value)
            return outcome

        usual = after(self._step)

        def compare(recorded: Recorded[Step]) -> str:
            replayed = after(recorded)
            with self.learners[0].context():
                rounding = rounding_share()
            limits = {"loss": rounding, "gradients": rounding, "update": UPDATE}
            for (what, limit), expected, found in zip(limits.items(), usual, replayed, strict=True):
                if not is_near(found, expected, limit):
                    return f"the {what} of a replayed step would differ from the usual"
            return ""

        return compare


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])
