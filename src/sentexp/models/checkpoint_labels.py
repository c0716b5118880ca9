"""A checkpoint that is a classifier already: which of its labels is which of the data's."""

import re

from sentexp.config import HeadStart, ModelConfig
from sentexp.errors import require
from sentexp.models.architecture import is_classifier, read_config
from sentexp.models.pretrained import Backbone

NAMELESS = re.compile(r"LABEL_\d+")
"""What transformers calls labels that were never named."""


def head_rows(model: ModelConfig, backbone: Backbone, labels: list[str], data: str) -> list[int] | None:
    """Return the row of the checkpoint's head for each label; None where the head is to be new.

    Labels are matched by name, in upper or lower case, and never by their order, which differs between checkpoints.

    Args:
        model: says whether its head is wanted, and what its labels are called.
        backbone: the checkpoint.
        labels: of the data, in the order of their indices.
        data: the name of the data, for messages.

    Raises:
        UserError: the labels are others, or have no names.
    """
    config, name = read_config(backbone), model.given_as
    if not is_classifier(config, backbone.folder):
        require(
            model.labels is None,
            f"model.labels={_listed(model.labels)} are the classes of a classifier, and {name} is a pretrained model "
            "without a head: leave it null.",
        )
        return None
    if model.head is HeadStart.new:
        return None
    own = [config.id2label[number] for number in range(config.num_labels)]
    new = "or train a new head with model.head=new"
    require(
        model.labels is None or len(model.labels) == len(own),
        f"model.labels={_listed(model.labels)} must name the {len(own)} classes of {name} in their order "
        f"({', '.join(own)}), {new}.",
    )
    named = model.labels or own
    require(
        model.labels is not None or not any(map(NAMELESS.fullmatch, own)),
        f"{name} is a classifier that does not say what its labels {', '.join(own)} mean: name them in this order, as "
        f"in model.labels=[{','.join(labels)}], {new}.",
    )
    rows = {label.casefold(): row for row, label in enumerate(named)}
    require(
        rows.keys() == {label.casefold() for label in labels} and len(rows) == len(named),
        f"The labels of {name} are {', '.join(named)}, and those of data={data} are {', '.join(labels)}: name its own "
        f"in the words of the data with model.labels=[...], choose rows with data.labels, {new}.",
    )
    return [rows[label.casefold()] for label in labels]


def _listed(labels: list[str] | None) -> str:
    return f"[{','.join(labels or [])}]"
