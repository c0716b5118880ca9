"""Where a classification head starts: drawn anew, or from the rows of one that the files hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sentexp.models.encoders import encoder_of
from sentexp.models.structure import head_modules, head_of, output_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def draw_head(model: "PreTrainedModel", paths: Sequence[str]) -> None:
    """Draw modules of the head anew, each as its architecture does."""
    if not paths:
        return
    if encoder_of(model.config) is None:
        head = head_of(model)
        with torch.no_grad():
            head.weight.normal_(0, model.config.get_text_config().initializer_range)
            if head.bias is not None:
                head.bias.zero_()
        return
    drawn = [part for path in paths for part in _from_below(head_modules(model)[path])]
    for part in drawn:
        for parameter in part.parameters(recurse=False):
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # else transformers leaves it as it is
    for part in [*drawn, model]:  # some architectures draw their output layer by way of the whole model
        model._init_weights(part)
    for part in drawn:
        for parameter in part.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]


def reorder_output(model: "PreTrainedModel", rows: Sequence[int]) -> None:
    """Put the rows of the head's output layer into the order of the labels."""
    output = model.get_submodule(output_path(model.config))
    order = torch.tensor(list(rows))
    with torch.no_grad():
        for parameter in output.parameters(recurse=False):
            parameter.copy_(parameter[order.to(parameter.device)].clone())


def _from_below(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return a module and all within it, parts before what holds them."""
    return list(reversed(list(module.modules())))
