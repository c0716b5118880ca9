"""The loss of a row: cross-entropy, smoothed, focused on rows still wrong, weighted by class, of two passes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sentexp.data.batch import Texts
from sentexp.models.label_scorer import LabelScorer
from sentexp.models.sequence_classifier import SequenceClassifier


class RowLoss(nn.Module):
    """What each row of a batch costs in training.

    Args:
        class_weights: one for each label; None is 1 for each.
        focal_gamma: of the focal loss; 0 is cross-entropy.
        label_smoothing: the share of the target that is spread evenly over all labels.
        r_drop: the weight of the divergence between two passes; 0 is one pass.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        r_drop: float = 0.0,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.focal_gamma, self.label_smoothing, self.r_drop = focal_gamma, label_smoothing, r_drop

    def forward(self, classifier: SequenceClassifier | LabelScorer, texts: Texts, targets: Tensor) -> Tensor:
        """Return the loss of each row, shape (rows,).

        Args:
            classifier: scores the rows.
            texts: rows.
            targets: class indices, shape (rows,).
        """
        if not self.label_smoothing and not self.r_drop:
            return weigh(classifier.losses(texts, targets), targets, self.class_weights, self.focal_gamma)
        logits = classifier.choices(texts)
        losses = self._weighed(logits, targets)
        if not self.r_drop:
            return losses
        again = classifier.choices(texts)
        return (losses + self._weighed(again, targets)) / 2 + self.r_drop * divergence(logits, again)

    def _weighed(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        return weigh(losses, targets, self.class_weights, self.focal_gamma)


def weigh(losses: Tensor, targets: Tensor, class_weights: Tensor | None, focal_gamma: float) -> Tensor:
    """Return the weighted loss of each row, shape (rows,): w_y * (1 - p_y)^gamma * -log p_y (Lin et al. 2017, eq. 5).

    Args:
        losses: -log p_y, the negative log-likelihood of each row's answer, shape (rows,).
        targets: class indices, shape (rows,).
        class_weights: w, shape (classes,); None is 1 for each.
        focal_gamma: gamma; 0 is the plain likelihood.
    """
    if focal_gamma > 0:
        wrong = 1 - (-losses).exp()
        # The gradient of x^gamma at 0 is not finite for gamma < 1; a row that is right to the last bit has no loss.
        losses = losses * wrong.clamp(min=1e-6) ** focal_gamma
    return losses if class_weights is None else losses * class_weights[targets]


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return (KL(p || q) + KL(q || p)) / 2 of each row, shape (rows,) (R-Drop: Liang et al. 2021, eq. 2).

    Args:
        logits: of p, shape (rows, classes).
        others: of q, same shape.
    """
    likely, other = logits.log_softmax(-1), others.log_softmax(-1)
    return ((likely.exp() - other.exp()) * (likely - other)).sum(-1) / 2
