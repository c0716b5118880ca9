"""How frozen linear layers are stored: what transformers packs while it loads, and what is packed once it has.

bitsandbytes and torchao pack layer by layer while the weights are read. HQQ (Badri & Shaji 2023) is packed once they
are there, by its own layers: transformers 5 has its configuration, but cannot load with it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sentexp.config import PeftConfig, Quantization
from sentexp.errors import require
from sentexp.models.dequantize import CONV, dense_weight, is_packed, replace_module
from sentexp.models.fast.lora_linear import Linear, lora_linear
from sentexp.models.targets import is_inside

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = 64
"""Weights that share a scale and a zero point in HQQ, as in NF4."""


def require_installed(quantization: Quantization) -> None:
    """Refuse a storage whose package is not installed.

    Raises:
        UserError: it is missing.
    """
    package = quantization.package
    require(
        package is None or find_spec(package) is not None,
        f"peft.quantization={quantization.name} is in the package {package}, which is not installed: pip install "
        f"'sentexp[{package}]', or use peft.quantization=nf4.",
    )


def quantization_config(storage: PeftConfig, compute: torch.dtype, kept: Sequence[str]) -> Any:
    """Return transformers' configuration of the layers that are packed while they are read; None where none are.

    Args:
        storage: how.
        compute: dtype of bitsandbytes' products in 4 bits.
        kept: names or paths of modules that stay as they are.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    match storage.quantization:
        case Quantization.none | Quantization.hqq4:
            return None
        case Quantization.int8:
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
        case Quantization.nf4 | Quantization.fp4:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=storage.quantization.name,
                bnb_4bit_use_double_quant=storage.double_quant,
                bnb_4bit_compute_dtype=compute,
                llm_int8_skip_modules=kept,
            )
        case Quantization.int8_weight_only:
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=kept)
        case Quantization.float8_weight_only:
            from torchao.quantization import Float8WeightOnlyConfig

            return TorchAoConfig(Float8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=kept)


def pack(
    model: "PreTrainedModel", quantization: Quantization, kept: Sequence[str], dtype: torch.dtype, device: torch.device
) -> None:
    """Pack what transformers has not packed, and let torchao's layers unpack their weights instead of keeping them.

    Args:
        model: as transformers has loaded it.
        quantization: by torchao or HQQ; what bitsandbytes has packed is left as it is.
        kept: paths of modules that stay as they are.
        dtype: of the products.
        device: where HQQ packs the layers; the model is there then.

    Raises:
        UserError: layers that are no linear layers of torch.
    """
    if quantization.package not in ("torchao", "hqq"):
        return
    require(
        not any(type(module).__name__ == CONV for module in model.modules()),
        f"peft.quantization={quantization.name} packs linear layers, and those of {model.config.model_type} are of "
        "another kind: use peft.quantization=nf4, fp4 or int8.",
    )
    for path, module in list(model.named_modules()):
        if type(module) is not nn.Linear or is_inside(path, kept):
            continue
        if quantization is Quantization.hqq4:
            replace_module(model, path, _with_hqq(module, dtype, device))
        elif is_packed(module):  # else the files have no weight of it, and the model is refused
            module.__class__ = PackedLinear
    if quantization is Quantization.hqq4:
        model.to(device)


class PackedLinear(nn.Linear):
    """A frozen linear layer of torchao.

    Its own product keeps the weight, unpacked, for the backward pass; this one unpacks it there again.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the outputs, in the dtype of the inputs."""
        out = lora_linear(input, Linear(None, lambda: dense_weight(self), None, ()))
        return out if self.bias is None else out + self.bias.to(out.dtype)


def _with_hqq(linear: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return HQQ's layer of a linear one, which it takes apart."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=4, group_size=GROUP, axis=1)
    layer: nn.Module = HQQLinear(linear.to(device), settings, compute_dtype=dtype, device=str(device))
    return layer
