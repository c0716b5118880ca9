"""`conf/peft/lora.yaml` and what builds on it: LoRA, QLoRA and DoRA, and the ways in which they begin."""

import re
from dataclasses import dataclass
from typing import Any

from sentexp.config.checks import check_ranges, number
from sentexp.config.peft import Bias, PeftConfig, Quantization, module_names
from sentexp.errors import UserError, require

STARTS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva", "corda", "lora_ga", "loftq")
"""Values of `peft.init`; of `pissa_niter_16` the number is free."""
UNCHANGING = ("default", "gaussian", "orthogonal", "eva", "loftq")
"""Those that leave the backbone as it is."""
READING_ROWS = ("eva", "corda", "lora_ga")
"""Those that look at training rows."""
FOUR_BIT = (Quantization.nf4, Quantization.fp4)


@dataclass(kw_only=True, slots=True)
class Lora(PeftConfig):
    """`peft=lora|qlora|dora`: low-rank adapters (Hu et al. 2021, Dettmers et al. 2023, Liu et al. 2024).

    A regular expression in `target_modules` is matched with the full path of a module, and so is one in
    `exclude_modules`. The keys of `rank_pattern` and `alpha_pattern` are matched with the end of a path, as in PEFT.
    """

    r: int = number(ge=1)
    alpha: float = number(gt=0, note="twice peft.r is usual")
    rank_pattern: Any
    alpha_pattern: Any
    init: str
    init_rows: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)
    bias: Bias
    target_modules: Any
    exclude_modules: Any
    layers_to_transform: list[int] | None
    modules_to_save: list[str] | None
    use_rslora: bool
    use_dora: bool

    def __post_init__(self) -> None:
        """Check ranks and targets."""
        check_ranges(self, "peft")
        self._check_patterns()
        self._check_init()
        require(
            self.bias is Bias.none or self.quantization is not Quantization.hqq4,
            f"peft.bias={self.bias.name} trains biases, and HQQ's layers hold theirs as constants: use "
            "peft.bias=none, or another peft.quantization.",
        )
        self.target_modules = module_names("peft.target_modules", self.target_modules)
        if self.exclude_modules is not None:
            self.exclude_modules = module_names("peft.exclude_modules", self.exclude_modules)
        if self.layers_to_transform is not None:
            self._check_layers(self.layers_to_transform)
        require(
            self.modules_to_save is None or all(self.modules_to_save),
            f"peft.modules_to_save={self.modules_to_save} must be names of modules, or null.",
        )

    @property
    def changes_base(self) -> bool:
        """Whether the adapter begins with a part of the weights, which is taken out of them."""
        return self.init not in UNCHANGING

    def _check_init(self) -> None:
        require(
            self.init in STARTS or bool(re.fullmatch(r"pissa_niter_[1-9]\d*", self.init)),
            f"peft.init={self.init} must be one of {', '.join(STARTS)} (or another number of iterations of PiSSA).",
        )
        odd = [rank for rank in (self.r, *(self.rank_pattern or {}).values()) if rank % 2]
        require(
            self.init != "orthogonal" or not odd,
            f"peft.init=orthogonal needs even ranks, and peft.r or peft.rank_pattern has {odd[:1]}.",
        )
        require(
            not self.changes_base or (self.quantization is Quantization.none and not self.use_dora),
            f"peft.init={self.init} begins with a part of the backbone's weights: use peft.quantization=none and "
            "peft.use_dora=false with it, or another peft.init.",
        )
        require(
            self.init != "loftq" or (self.quantization in FOUR_BIT and not self.use_dora),
            "peft.init=loftq makes up for what 4 bits lose: use peft.quantization=nf4 or fp4 (peft=qlora) and "
            "peft.use_dora=false with it, or another peft.init.",
        )

    def _check_layers(self, layers: list[int]) -> None:
        require(
            len(layers) > 0 and (self.target_modules == "all-linear" or isinstance(self.target_modules, list)),
            f"peft.layers_to_transform={layers} must hold at least one layer, and goes with "
            "peft.target_modules=all-linear or a list of names; null is every layer.",
        )
        require(min(layers) >= 0, f"peft.layers_to_transform={layers} must hold layer numbers of at least 0.")

    def _check_patterns(self) -> None:
        for key, pattern, kind in (("rank", self.rank_pattern, int), ("alpha", self.alpha_pattern, int | float)):
            right = isinstance(pattern, dict) and all(isinstance(x, kind) and x > 0 for x in pattern.values())
            require(
                pattern is None or right,
                f"peft.{key}_pattern={pattern} must give layers {key}s above 0 by name, such as {{v_proj:32}}; null is "
                f"the same {key} everywhere.",
            )
            for name in pattern or {}:
                try:
                    re.compile(str(name))
                except re.error as error:
                    raise UserError(f"peft.{key}_pattern: {name!r} is not a regular expression: {error}.") from None
