"""`conf/optim/`: the optimizer and the schedule of its learning rate."""

from dataclasses import dataclass
from enum import Enum

from sentexp.config.checks import check_ranges, number
from sentexp.errors import require


class OptimizerName(Enum):
    """The optimizer; the names with `8bit` or `paged` are bitsandbytes'."""

    adamw = "adamw"
    adafactor = "adafactor"
    sgd = "sgd"
    adamw_8bit = "adamw_8bit"
    paged_adamw_32bit = "paged_adamw_32bit"
    paged_adamw_8bit = "paged_adamw_8bit"


class Schedule(Enum):
    """Learning-rate schedule after warm-up, by transformers' names (`lr_scheduler_type`)."""

    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    polynomial = "polynomial"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: OptimizerName
    lr: float = number(gt=0)
    head_lr: float | None = number(gt=0, note="null is optim.lr")
    weight_decay: float = number(ge=0)
    betas: list[float]
    eps: float = number(gt=0)
    momentum: float = number(ge=0, lt=1)
    schedule: Schedule
    warmup_ratio: float = number(ge=0, lt=1)
    warmup_steps: int | None = number(ge=0)
    lora_plus_ratio: float | None = number(gt=0, note="16 is usual")

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self, "optim")
        require(
            len(self.betas) == len(("beta1", "beta2")) and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas} must be two numbers of at least 0 and below 1.",
        )
