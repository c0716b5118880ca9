"""Where a classification head starts: drawn anew, or from the rows of one that the files hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sentexp.models.encoders import encoder_of
from sentexp.models.structure import head_modules, head_of, output_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def begin_new_head(model: Any, missing: Sequence[str], replaces: bool) -> None:
    """Draw what is new of a head; the model notes it as `drawn`, for runs of a sweep that begin anew.

    Args:
        model: as it was loaded; transformers has drawn the missing weights of a decoder, which stay as they are.
        missing: names of the weights that the files do not hold.
        replaces: draw all of it. Else what the files hold is kept, a pooler for instance, but for the output layer.
    """
    head, output = head_modules(model), output_path(model.config)
    absent = [path for path in head if any(name.startswith(f"{path}.") for name in missing)]
    model.drawn = [path for path in head if replaces or path in absent or f"{output}.".startswith(f"{path}.")]
    if encoder_of(model.config) is not None or not absent:
        draw_head(model, model.drawn)


def begin_at_rows(model: Any, rows: Sequence[int]) -> None:
    """Put the rows of the output layer that the files hold into the order of the labels; nothing is drawn."""
    model.drawn = []
    order = torch.tensor(list(rows))
    with torch.no_grad():
        for parameter in model.get_submodule(output_path(model.config)).parameters(recurse=False):
            parameter.copy_(parameter[order.to(parameter.device)].clone())


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


def _from_below(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return a module and all within it, parts before what holds them."""
    return list(reversed(list(module.modules())))
