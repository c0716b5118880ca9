"""The loss of a row, weighted by its class, and focused on the rows that are still wrong."""

from torch import Tensor


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
