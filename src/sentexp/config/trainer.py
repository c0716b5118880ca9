"""`conf/trainer/`: the training loop."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sentexp.config.checks import AUTO, check_accelerator, check_count_or_fraction, check_ranges, check_switch, number
from sentexp.config.metric_names import METRICS, ORDERED_METRICS, SCORE_METRICS
from sentexp.errors import require


class Precision(Enum):
    """Arithmetic of the forward and backward pass; `auto` is bf16 where the hardware multiplies it natively."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Strategy(Enum):
    """The processes of a run: one; several, each with the whole model; several, each with a shard of every layer."""

    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"


class Average(Enum):
    """Which weights are evaluated and saved: the last ones, or a mean of those of several steps."""

    none = "none"
    ema = "ema"
    last_k = "last_k"


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The training loop. `batch_size` rows fill the memory; an optimizer step sees `accumulate_grad_batches` of them.

    With several processes (`strategy`), each takes its part of these rows.

    `max_tokens` fills the memory by tokens instead of by rows: an optimizer step then sees at most `max_tokens *
    accumulate_grad_batches` tokens, cut into `accumulate_grad_batches` parts of about as many, and `batch_size` does
    not count. `padding_free`, `compile` and `cuda_graphs` change how a batch is computed, never which rows it
    holds.
    """

    max_epochs: int = number(ge=1)
    max_steps: int | None = number(ge=1)
    batch_size: int = number(ge=1)
    max_tokens: int | None = number(ge=1)
    eval_batch_size: int = number(ge=1)
    accumulate_grad_batches: int = number(ge=1)
    precision: Precision
    gradient_clip_val: float | None = number(gt=0, note="null does not clip")
    gradient_checkpointing: bool
    group_by_length: bool
    padding_free: bool
    compile: bool
    cuda_graphs: Any  # auto, true or false: OmegaConf 2.3 cannot merge a union of these
    average: Average
    average_decay: float = number(gt=0, lt=1)
    average_checkpoints: int = number(ge=1)
    average_interval: int = number(ge=1)
    unfreeze: float | None = number(gt=0, lt=1, note="null trains all layers from the first step on")
    eval_steps: float | None
    save_steps: int = number(ge=1)
    log_every_n_steps: int = number(ge=1)
    monitor: str
    early_stopping_patience: int | None = number(ge=1)
    accelerator: str
    strategy: Strategy
    progress_bar: bool

    def __post_init__(self) -> None:
        """Check ranges and names."""
        check_ranges(self, "trainer")
        check_count_or_fraction(
            "trainer.eval_steps", self.eval_steps, "a number of steps, a fraction of an epoch below 1, or null"
        )
        require(
            not self.compile or self.padding_free,
            "trainer.compile=true compiles the layers of the path without padding: leave trainer.padding_free=true.",
        )
        metrics = dict.fromkeys((*METRICS, *ORDERED_METRICS, *SCORE_METRICS))
        legal = [AUTO, *(f"validation/{name}" for name in metrics)]
        require(self.monitor in legal, f"trainer.monitor={self.monitor} must be one of {', '.join(legal)}.")
        check_switch("trainer.cuda_graphs", self.cuda_graphs)
        check_accelerator("trainer.accelerator", self.accelerator)

    @property
    def fills_by(self) -> str:
        """The key that says what a micro-batch holds: `max_tokens` or `batch_size`."""
        return "batch_size" if self.max_tokens is None else "max_tokens"

    @property
    def micro_batch(self) -> int:
        """The size of a micro-batch, in tokens or in rows."""
        return self.batch_size if self.max_tokens is None else self.max_tokens

    @property
    def as_typed(self) -> str:
        """The effective batch as it is typed."""
        return (
            f"trainer.{self.fills_by}={self.micro_batch} trainer.accumulate_grad_batches={self.accumulate_grad_batches}"
        )
