"""How several processes train together, as Lightning strategies: each is alone but for the sum of the gradients.

Where gradients are added up during the backward pass, as PyTorch's DistributedDataParallel does, a process that runs
out of memory leaves the others waiting for ever. Here the processes meet before each optimizer step, in a message
that tells of that (see `sentexp.distributed.processes`), and only then add up their gradients: the price is that
nothing else is computed meanwhile.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from sentexp.distributed import processes
from sentexp.distributed.sharding import cut_like, gathered


class SingleStrategy(SingleDeviceStrategy):
    """One process (`trainer.strategy=single`)."""

    def teardown(self) -> None:
        """Leave the model where it is.

        Lightning moves it to the CPU: frozen weights that other runs of a sweep still read, all weights that the test
        reads next, and shards that the processes could not put together there.
        """
        module, self._lightning_module = self._lightning_module, None
        super().teardown()
        self._lightning_module = module


class ReplicatedStrategy(SingleStrategy):
    """Every process holds the whole model; the gradients of a step are the sum over all processes (`trainer=ddp`)."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes checkpoints."""
        return processes.is_main()

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Step, once all processes have done their part of the rows: the closure is the last forward and backward."""

        def together() -> Any:
            result = closure()
            processes.all_gather()
            processes.all_reduce_sum(self._to_add_up(optimizer))
            return result

        return super().optimizer_step(optimizer, together, model, **kwargs)

    def _to_add_up(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the loss of the step and the gradients."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return [self._step_loss(), *(parameter.grad for parameter in parameters if parameter.grad is not None)]

    def _step_loss(self) -> Tensor:
        assert self.lightning_module is not None
        return self.lightning_module.step_loss  # type: ignore[return-value]


class ShardedStrategy(ReplicatedStrategy):
    """Every process holds a shard of each layer (`trainer=fsdp`); the backward pass averages the gradients itself.

    What is saved is whole, and the same as that of one process.
    """

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Multiply by the number of processes, over which the shards' gradients are averaged."""
        return super().backward(closure_loss * processes.world_size(), *args, **kwargs)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        moments = {
            number: {name: gathered(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
            for number, entry in state["state"].items()
        }
        return state | {"state": moments}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Take this process's part of the whole state."""
        super().load_optimizer_state_dict(checkpoint)
        for wrapped in self.optimizers:
            optimizer = wrapped._optimizer if isinstance(wrapped, LightningOptimizer) else wrapped
            for parameter, entry in optimizer.state.items():
                for name, value in entry.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        entry[name] = cut_like(value, parameter)

    def _to_add_up(self, optimizer: Optimizer) -> list[Tensor]:
        del optimizer
        return [self._step_loss()]
