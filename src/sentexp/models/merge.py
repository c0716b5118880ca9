"""A trained model as one plain transformers model: adapter merged, quantised layers unpacked, head in place."""

from typing import Any

import torch
from torch import nn

from sentexp.config import Precision, Quantization
from sentexp.errors import UserError, require
from sentexp.models.dequantize import restore_kinds
from sentexp.models.loading import build_on_meta
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import Trained, load_trained
from sentexp.models.virtual_tokens import has_virtual_tokens

CPU = torch.device("cpu")


def merge(trained: Trained, base: Backbone, device: torch.device = CPU) -> nn.Module:
    """Return the model in float32, without PEFT and without packed layers.

    A quantised base is unpacked, not replaced by the weights that it was packed from: the adapter was trained on
    what it rounds to.

    Args:
        trained: the weights.
        base: see `find_base`.
        device: where it is merged, and then is.

    Raises:
        UserError: weights that are missing, damaged, not finite, or do not fit the base.
    """
    model: Any
    model, _ = load_trained(trained, base, Precision.fp32, device, unpacked=True)
    if has_virtual_tokens(model):
        raise UserError(
            f"{model.active_peft_config.peft_type.value} puts virtual tokens before each text, and no merged model has "
            "any: use format=peft."
        )
    if hasattr(model, "merge_and_unload"):
        try:
            model = model.merge_and_unload()  # PEFT's own look at the numbers copies each matrix several times
        except (ValueError, NotImplementedError) as error:
            method = model.peft_config["default"].peft_type.value
            raise UserError(f"PEFT cannot merge {method} into this model ({error}): use format=peft.") from None
    if trained.storage.quantization is not Quantization.none:
        restore_kinds(model, build_on_meta(base, None if trained.answers else trained.labels))
    require(
        all(bool(weight.sum().isfinite()) for weight in model.parameters()),
        f"{trained.folder}: merged weights hold numbers that are not finite, so the adapter has diverged: train it "
        "again with a lower optim.lr.",
    )
    model.config.use_cache = True
    merged: nn.Module = model.float().requires_grad_(False).train(False)
    return merged
