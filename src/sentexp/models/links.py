"""From what a head computes to what a model says, and the loss of that: links, as statistics calls them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, softplus

from sentexp.config import HeadLoss, TargetKind


@dataclass(frozen=True)
class Link:
    """The outputs of a head are the logits of the classes."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return logits, shape (rows, classes)."""
        return outputs

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, shape (rows,)."""
        return cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Cumulative(Link):
    """The outputs are cumulative logits."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return logits: see `cumulative`."""
        return cumulative(outputs)


@dataclass(frozen=True)
class Scale(Link):
    """The one output is a score in standard deviations of the training scores from their mean."""

    mean: float
    std: float

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return scores, shape (rows, 1)."""
        return self.mean + self.std * outputs.float()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of each row over the variance of the training scores, shape (rows,)."""
        return ((logits[:, 0] - targets) / self.std).square()


@dataclass(frozen=True)
class EachLabel(Link):
    """The outputs are the logits of labels, of which a text has any number."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy of each row, its mean over the labels, shape (rows,)."""
        return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


UNCHANGED = Link()


def link_of(loss: HeadLoss, scale: tuple[float, float] | None = None) -> Link:
    """Return the link that a head learns with.

    Args:
        loss: `task.loss`.
        scale: mean and standard deviation of the training scores, where it learns scores.
    """
    if loss is HeadLoss.regression:
        assert scale is not None
        return Scale(*scale)
    return {HeadLoss.ordinal: Cumulative(), HeadLoss.multi_label: EachLabel()}.get(loss, UNCHANGED)


def said(kind: TargetKind, logits: Tensor) -> NDArray[Any]:
    """Return what logits say, float32, shape (rows, labels): probabilities, or the scores as they are.

    Args:
        kind: what is predicted; the probabilities of classes sum to 1, each of a set of labels is by itself.
        logits: of any device, shape (rows, labels).
    """
    outputs = logits.float()
    match kind:
        case TargetKind.classes:
            outputs = outputs.softmax(-1)
        case TargetKind.label_sets:
            outputs = outputs.sigmoid()
    answers: NDArray[Any] = outputs.cpu().numpy()
    return answers


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
