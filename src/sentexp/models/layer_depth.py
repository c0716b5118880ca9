"""How deep in a model each parameter is: what learning rates and unfreezing follow, layer by layer."""

from typing import NamedTuple

from torch import nn

from sentexp.errors import UserError
from sentexp.models.structure import base_of

BELOW = ("embed", "wte", "wpe")
"""Parts of the names of what is below the first layer."""


class LayerDepths(NamedTuple):
    """The number of layers, and of each parameter by its id: 0 for embeddings, 1 to `layers`, `layers` + 1 above."""

    layers: int
    of: dict[int, int]


def layer_depths(model: nn.Module, key: str) -> LayerDepths:
    """Return how deep the parameters of a model are.

    Args:
        model: transformers' model, wrapped by PEFT or not.
        key: that asks for it, as it is typed, for the message.

    Raises:
        UserError: its layers share their weights.
    """
    base = base_of(model)
    backbone: nn.Module = base.base_model
    count = base.config.get_text_config().num_hidden_layers
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    layers = next(lists, None)
    if layers is None:
        raise UserError(
            f"{key} gives each layer its own, and those of {base.config.model_type} share weights: leave it out."
        )
    depths = {id(parameter): count + 1 for parameter in model.parameters()}
    for name, parameter in backbone.named_parameters():
        if any(part in name for part in BELOW):
            depths[id(parameter)] = 0
    for number, layer in enumerate(layers, 1):
        depths |= {id(parameter): number for parameter in layer.parameters()}
    return LayerDepths(count, depths)
