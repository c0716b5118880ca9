"""`conf/peft/`: what is trained, and how the frozen backbone is stored."""

import re
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from sentexp.config.trainer import Precision
from sentexp.errors import UserError, require


class Quantization(Enum):
    """How the frozen backbone is stored: by bitsandbytes, by torchao (`..._weight_only`, its names), or by HQQ."""

    none = "none"
    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"
    int8_weight_only = "int8_weight_only"
    float8_weight_only = "float8_weight_only"
    hqq4 = "hqq4"

    @property
    def package(self) -> str | None:
        """The package that packs the weights and computes with them."""
        if self is Quantization.none:
            return None
        if self is Quantization.hqq4:
            return "hqq"
        return "torchao" if self.name.endswith("_weight_only") else "bitsandbytes"

    @property
    def weight_only(self) -> bool:
        """Whether the products are those of the weights unpacked: in LLM.int8 they are of quantised inputs too."""
        return self not in (Quantization.none, Quantization.int8)


class Bias(Enum):
    """Which bias vectors train beside the adapter (PEFT's `bias`)."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    """What every way of training shares: the storage of the frozen backbone, and a learning rate that usually suits."""

    usual_lr: float
    quantization: Quantization
    double_quant: bool
    compute_dtype: Precision


@dataclass(kw_only=True, slots=True)
class Untuned(PeftConfig):
    """`peft=none`: nothing is trained; the model is tested as it is, with the head that it has or a new one."""


@dataclass(kw_only=True, slots=True)
class HeadOnly(PeftConfig):
    """`peft=head`: the backbone is frozen and only the head is trained."""


@dataclass(kw_only=True, slots=True)
class FullFineTuning(PeftConfig):
    """`peft=full`: every weight is trained."""

    def __post_init__(self) -> None:
        """Quantised weights cannot be trained."""
        require(
            self.quantization is Quantization.none,
            f"peft=full cannot train quantised weights (peft.quantization={self.quantization.name}): use "
            "peft.quantization=none, or peft=qlora to train an adapter over them.",
        )


@dataclass(kw_only=True, slots=True)
class BiasOnly(PeftConfig):
    """`peft=bitfit`: the bias vectors of the backbone are trained (Ben Zaken et al. 2022)."""

    def __post_init__(self) -> None:
        """The backbone is saved whole, as it is."""
        require(
            self.quantization is Quantization.none,
            f"peft=bitfit saves the whole model, and peft.quantization={self.quantization.name} packs it: use "
            "peft.quantization=none, or peft=qlora.",
        )


@dataclass(kw_only=True, slots=True)
class IA3(PeftConfig):
    """`peft=ia3`: learned rescaling of activations (Liu et al. 2022)."""

    target_modules: Any
    feedforward_modules: Any

    def __post_init__(self) -> None:
        """Feed-forward modules are a part of the targets."""
        require(
            (self.target_modules is None) == (self.feedforward_modules is None),
            "peft.target_modules and peft.feedforward_modules go together for peft=ia3: give both, or neither.",
        )
        if self.target_modules is not None:
            self.target_modules = module_names("peft.target_modules", self.target_modules)
            if self.feedforward_modules != []:  # an empty list: every target scales its output
                self.feedforward_modules = module_names("peft.feedforward_modules", self.feedforward_modules)


VIRTUAL = ("P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
"""PEFT's names of the methods that put virtual tokens before each text."""


@dataclass(kw_only=True, slots=True)
class PeftMethod(PeftConfig):
    """Any other method of PEFT.

    `type` is PEFT's name of it, as in `peft.PeftType`. A file in `conf/peft/` adds keys of PEFT's own configuration
    class, by their names there: see `sentexp.config.peft_methods`.
    """

    type: str

    @property
    def prefix(self) -> str:
        """What PEFT's own keys begin with on a command line."""
        return "peft."

    def __post_init__(self) -> None:
        """Check targets, where the method has any, and rates of dropout, of which PEFT takes wrong ones for none."""
        for key, value in self.own_keys().items():
            require(
                not key.endswith("dropout") or (isinstance(value, int | float) and 0 <= value < 1),
                f"{self.prefix}{key}={value} must be at least 0 and below 1.",
            )
        targets = getattr(self, "target_modules", None)
        if targets is not None:
            setattr(self, "target_modules", module_names("peft.target_modules", targets))  # noqa: B010

    def own_keys(self) -> dict[str, Any]:
        """Return the values of PEFT's own keys, without the targets, by their names."""
        shared = {item.name for item in fields(PeftMethod)} | {"target_modules"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in shared}


@dataclass(kw_only=True, slots=True)
class OtherMethod(PeftMethod):
    """`peft=other`: a method of PEFT that has no file in `conf/peft/`."""

    target_modules: Any
    config: dict[str, Any]

    @property
    def prefix(self) -> str:
        """What PEFT's own keys begin with on a command line."""
        return "peft.config."

    def own_keys(self) -> dict[str, Any]:
        """Return the keys that are given; the others have PEFT's defaults."""
        return dict(self.config)


def module_names(key: str, value: object) -> str | list[str]:
    """Return a regular expression, `all-linear`, or a list of names; a single plain name counts as a list of one."""
    if isinstance(value, str) and value:
        if value == "all-linear":
            return value
        if re.fullmatch(r"[\w.]+", value):
            return [value]
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(f"{key}={value!r} is not a regular expression: {error}.") from None
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return list(value)
    raise UserError(
        f"{key}={value!r} must be all-linear, a list of module names such as [q_proj,v_proj], or a regular expression."
    )
