"""From what a head computes to the logits of the classes: links, as statistics calls them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from sentexp.config import HeadLoss

Link = Callable[[Tensor], Tensor]
"""From the outputs of a head to the logits of the classes, both of shape (rows, classes)."""


def link_of(loss: HeadLoss) -> Link:
    """Return the link that a head learns with."""
    return {HeadLoss.cross_entropy: unchanged, HeadLoss.ordinal: cumulative}[loss]


def unchanged(outputs: Tensor) -> Tensor:
    """Return the outputs: a row of the head for each class."""
    return outputs


def cumulative(outputs: Tensor) -> Tensor:
    """Return log-probabilities of classes in their order, from cumulative logits (McCullagh 1980, section 2).

    The first output z_0 is where a text is on the scale, each other one how far a class is from the one below it: the
    logit of P(class >= k) is z_0 + c - softplus(z_1) - ... - softplus(z_k), which falls with k, so that no class has a
    negative probability. The distances may depend on the text, other than in the proportional odds model, whose
    thresholds are numbers: many heads have no bias to hold them. Outputs of 0 are symmetric, by c = classes/2 log 2.
    """
    outputs = outputs.float()
    location, steps = outputs[:, :1], outputs[:, 1:]
    center = outputs.shape[1] / 2 * math.log(2)
    reached = location + center - softplus(steps).cumsum(1)  # the logit of P(class >= k), for k from 1
    low, high = logsigmoid(reached), logsigmoid(-reached)
    # P(k) = P(>= k) - P(>= k + 1), and sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    middle = low[:, :-1] + high[:, 1:] + logsigmoid(steps[:, 1:])
    return torch.cat([high[:, :1], middle, low[:, -1:]], dim=1)
