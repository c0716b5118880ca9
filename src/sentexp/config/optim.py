"""`conf/optim/`: the optimizer and the schedule of its learning rate."""

from dataclasses import dataclass
from enum import Enum

from sentexp.config.checks import check_ranges, number
from sentexp.errors import require

DIGITS = 12
"""Significant digits of a learning rate that is scaled: 3e-5 * 3 is 9e-5, and not 9.000000000000001e-05."""


class OptimizerName(Enum):
    """The optimizer; the names with `8bit` or `paged` are bitsandbytes'."""

    adamw = "adamw"
    adafactor = "adafactor"
    sgd = "sgd"
    adamw_8bit = "adamw_8bit"
    paged_adamw_32bit = "paged_adamw_32bit"
    paged_adamw_8bit = "paged_adamw_8bit"
    muon = "muon"
    lion = "lion"
    schedule_free = "schedule_free"


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
    lr_scale: float = number(gt=0)
    head_lr: float | None = number(gt=0, note="null is optim.lr")
    layer_decay: float = number(gt=0, le=1, note="1 is the same rate for every layer")
    weight_decay: float = number(ge=0)
    betas: list[float]
    eps: float = number(gt=0)
    momentum: float = number(ge=0, lt=1)
    schedule: Schedule
    warmup_ratio: float = number(ge=0, lt=1)
    warmup_steps: int | None = number(ge=0)
    lora_plus_ratio: float | None = number(gt=0, note="16 is usual")

    def __post_init__(self) -> None:
        """Check ranges, and take the scale into the learning rate: runs of the same rate are the same run."""
        check_ranges(self, "optim")
        if self.lr_scale != 1:
            self.lr, self.lr_scale = float(f"{self.lr * self.lr_scale:.{DIGITS}g}"), 1.0
        require(
            len(self.betas) == len(("beta1", "beta2")) and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas} must be two numbers of at least 0 and below 1.",
        )
        require(
            self.name is not OptimizerName.schedule_free or self.betas[0] > 0,
            f"optim.betas={self.betas} begins with the share of the mean in the weights that optim=schedule_free "
            "trains: it must be above 0, and 0.9 is usual.",
        )
        require(
            self.name is not OptimizerName.schedule_free or self.schedule is Schedule.constant,
            f"optim.schedule={self.schedule.name} lowers the learning rate, and optim=schedule_free averages weights "
            "instead: leave optim.schedule=constant.",
        )
