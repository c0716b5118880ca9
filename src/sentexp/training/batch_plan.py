"""How the rows of an optimizer step are cut, and how weights are kept: what changes where memory runs out."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from sentexp.config import TrainerConfig


@dataclass(kw_only=True, slots=True, frozen=True)
class BatchPlan:
    """The sizes of batches; see the keys of `trainer` with these names."""

    batch_size: int
    max_tokens: int | None
    accumulate_grad_batches: int
    eval_batch_size: int
    keeps_dequantized: bool = False
    """Whether packed weights are unpacked once for the whole run."""

    @classmethod
    def of(cls, trainer: TrainerConfig) -> "BatchPlan":
        """Return the sizes that a configuration asks for."""
        return cls(
            batch_size=trainer.batch_size,
            max_tokens=trainer.max_tokens,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            eval_batch_size=trainer.eval_batch_size,
        )

    def apply_to(self, trainer: TrainerConfig) -> TrainerConfig:
        """Return the loop with batches of these sizes."""
        sizes = asdict(self)
        del sizes["keeps_dequantized"]
        return replace(trainer, **sizes)

    @property
    def micro_batch(self) -> int:
        """The size of a micro-batch, in tokens where `max_tokens` is given, else in rows."""
        return self.batch_size if self.max_tokens is None else self.max_tokens

    @property
    def reduced(self) -> dict[str, Any]:
        """The sizes that halving changes, by their keys."""
        key = "batch_size" if self.max_tokens is None else "max_tokens"
        return {name: getattr(self, name) for name in (key, "accumulate_grad_batches", "eval_batch_size")}

    def packed(self) -> "BatchPlan | None":
        """Return the same sizes with weights that stay packed; None where they do so already."""
        return replace(self, keeps_dequantized=False) if self.keeps_dequantized else None

    def halved(self, least: int = 1) -> "BatchPlan | None":
        """Return micro-batches of at most half the size and the same effective batch (law 9).

        Args:
            least: the smallest micro-batch, in tokens where `max_tokens` is given, else in rows.

        Returns:
            The sizes; None where the micro-batch is the smallest already.
        """
        evaluated, steps = max(1, self.eval_batch_size // 2), self.accumulate_grad_batches
        if self.max_tokens is not None:
            if self.max_tokens < 2 * least or self.max_tokens % 2:
                return None
            half = self.max_tokens // 2
            return replace(self, max_tokens=half, accumulate_grad_batches=2 * steps, eval_batch_size=evaluated)
        if self.batch_size <= least:
            return None
        effective = self.batch_size * steps
        micro = next(size for size in range(self.batch_size // 2, 0, -1) if effective % size == 0)
        return replace(self, batch_size=micro, accumulate_grad_batches=effective // micro, eval_batch_size=evaluated)


def halve_micro_batch(trainer: TrainerConfig, least: int = 1) -> TrainerConfig | None:
    """Return the loop with halved micro-batches, see `BatchPlan.halved`; None where they are the smallest already."""
    smaller = BatchPlan.of(trainer).halved(least)
    return None if smaller is None else smaller.apply_to(trainer)
