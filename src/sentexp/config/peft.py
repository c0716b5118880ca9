"""`conf/peft/`: what is trained, and how the frozen backbone is stored."""

import re
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from sentexp.config.checks import check_ranges, number
from sentexp.config.trainer import Precision
from sentexp.errors import UserError, require

UNCHANGING = ("default", "gaussian", "orthogonal")
"""Values of `peft.init` that leave the backbone as it is."""


class Quantization(Enum):
    """How bitsandbytes stores the frozen backbone."""

    none = "none"
    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"


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
class Lora(PeftConfig):
    """`peft=lora|qlora|dora`: low-rank adapters (Hu et al. 2021, Dettmers et al. 2023, Liu et al. 2024).

    A regular expression in `target_modules` is matched with the full path of a module.
    """

    r: int = number(ge=1)
    alpha: float = number(gt=0, note="twice peft.r is usual")
    init: str
    dropout: float = number(ge=0, lt=1)
    bias: Bias
    target_modules: Any
    layers_to_transform: list[int] | None
    use_rslora: bool
    use_dora: bool

    def __post_init__(self) -> None:
        """Check ranks and targets."""
        check_ranges(self, "peft")
        self._check_init()
        self.target_modules = _target_modules("peft.target_modules", self.target_modules)
        if self.layers_to_transform is not None:
            self._check_layers(self.layers_to_transform)

    @property
    def changes_base(self) -> bool:
        """Whether the adapter begins with a part of the weights, which is taken out of them: PiSSA and OLoRA."""
        return self.init not in UNCHANGING

    def _check_init(self) -> None:
        is_known = self.init in (*UNCHANGING, "pissa", "olora") or re.fullmatch(r"pissa_niter_[1-9]\d*", self.init)
        require(
            bool(is_known),
            f"peft.init={self.init} must be default, gaussian, orthogonal, pissa, pissa_niter_<iterations> or olora.",
        )
        require(
            self.init != "orthogonal" or self.r % 2 == 0,
            f"peft.init=orthogonal needs an even rank, and peft.r={self.r} is odd.",
        )
        require(
            not self.changes_base or (self.quantization is Quantization.none and not self.use_dora),
            f"peft.init={self.init} begins with a part of the backbone's weights: use peft.quantization=none and "
            "peft.use_dora=false with it, or another peft.init.",
        )

    def _check_layers(self, layers: list[int]) -> None:
        require(
            len(layers) > 0 and (self.target_modules == "all-linear" or isinstance(self.target_modules, list)),
            f"peft.layers_to_transform={layers} must hold at least one layer, and goes with "
            "peft.target_modules=all-linear or a list of names; null is every layer.",
        )
        require(min(layers) >= 0, f"peft.layers_to_transform={layers} must hold layer numbers of at least 0.")


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
            self.target_modules = _target_modules("peft.target_modules", self.target_modules)
            if self.feedforward_modules != []:  # an empty list: every target scales its output
                self.feedforward_modules = _target_modules("peft.feedforward_modules", self.feedforward_modules)


@dataclass(kw_only=True, slots=True)
class PeftMethod(PeftConfig):
    """Any other method of PEFT.

    `type` is PEFT's name of it, as in `peft.PeftType`. A file in `conf/peft/` adds keys of PEFT's own configuration
    class, by their names there: see `sentexp.config.peft_methods`.
    """

    type: str

    def __post_init__(self) -> None:
        """Check targets, where the method has any."""
        targets = getattr(self, "target_modules", None)
        if targets is not None:
            setattr(self, "target_modules", _target_modules("peft.target_modules", targets))  # noqa: B010

    def own_keys(self) -> dict[str, Any]:
        """Return the values of PEFT's own keys, without the targets, by their names."""
        shared = {item.name for item in fields(PeftMethod)} | {"target_modules"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in shared}


@dataclass(kw_only=True, slots=True)
class OtherMethod(PeftMethod):
    """`peft=other`: a method of PEFT that has no file in `conf/peft/`."""

    target_modules: Any
    config: dict[str, Any]

    def own_keys(self) -> dict[str, Any]:
        """Return the keys that are given; the others have PEFT's defaults."""
        return dict(self.config)


def method_name(peft: PeftConfig) -> str:
    """Return the usual name of a way of training, such as lora, qlora, dora, vera or head."""
    four_bit = "q" if peft.quantization in (Quantization.nf4, Quantization.fp4) else ""
    match peft:
        case Lora():
            return four_bit + ("dora" if peft.use_dora else "lora")
        case PeftMethod():
            return four_bit + peft.type.lower()
    names = {IA3: "ia3", FullFineTuning: "full", BiasOnly: "bitfit", HeadOnly: "head"}
    return names.get(type(peft), "none")


def _target_modules(key: str, value: object) -> str | list[str]:
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
