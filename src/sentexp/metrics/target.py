"""What rows are measured as: classes, classes in their order, or scores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from sentexp.config.metric_names import (
    METRICS,
    ORDERED_METRICS,
    RUN_SCORE_METRICS,
    is_score,
    short_metrics,
)
from sentexp.metrics.calibration import fit_temperature, reliability
from sentexp.metrics.score_metrics import score_metrics
from sentexp.metrics.split_metrics import confusion_matrix, split_metrics

Bins = list[tuple[float, float, int]]


class Target(ABC):
    """A kind of target. `labels` are the columns of the logits, `names` the metrics of a split, `headline` the first.

    Args:
        labels: class names, or the one name of a score.
    """

    names: tuple[str, ...]
    headline: str

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    @property
    def short(self) -> tuple[str, ...]:
        """The metrics of slices and short tables."""
        return short_metrics(self.labels)

    @abstractmethod
    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of rows by name."""

    @abstractmethod
    def say(self, logits: Tensor) -> NDArray[Any]:
        """Return probabilities, or scores, float32, shape (rows, labels)."""

    @abstractmethod
    def confusion(self, logits: Tensor, targets: Tensor) -> list[list[int]]:
        """Return counts of true against predicted classes; nothing of scores."""

    @abstractmethod
    def temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return what logits are divided by for calibrated probabilities; 1 of scores, which have none."""

    @abstractmethod
    def calibrated(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, float]:
        """Return the metrics that calibration changes, by their names in a run."""

    @abstractmethod
    def reliability(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, Bins]:
        """Return the curves of accuracy over confidence, by name; nothing of scores."""


class Classes(Target):
    """Classes; where they are ordered, distances are measured as well."""

    headline = "accuracy"

    def __init__(self, labels: Sequence[str], ordered: bool = False) -> None:
        super().__init__(labels)
        self.ordered = ordered
        self.names = (*METRICS, *ORDERED_METRICS) if ordered else METRICS

    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of `split_metrics`."""
        return split_metrics(self.labels, logits, targets, per_class, self.ordered)

    def say(self, logits: Tensor) -> NDArray[Any]:
        """Return probabilities."""
        probabilities: NDArray[Any] = logits.float().softmax(-1).numpy()
        return probabilities

    def confusion(self, logits: Tensor, targets: Tensor) -> list[list[int]]:
        """Return counts of true classes (rows) against predicted ones (columns)."""
        return confusion_matrix(self.labels, logits, targets)

    def temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return the temperature of the least loss."""
        return fit_temperature(logits, targets)

    def calibrated(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, float]:
        """Return loss, calibration error and Brier score at a temperature."""
        cooled = split_metrics(self.labels, logits / temperature, targets)
        return {f"{name}_calibrated": cooled[name] for name in ("loss", "ece", "brier")}

    def reliability(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, Bins]:
        """Return the curves before and after calibration."""
        return {
            "as it is": reliability(logits, targets),
            f"at temperature {temperature:.2f}": reliability(logits / temperature, targets),
        }


class Scores(Target):
    """Scores: numbers on a scale of their own.

    Args:
        labels: the one name of a score.
        std: the standard deviation of the training scores, in which the loss is measured.
    """

    names, headline = RUN_SCORE_METRICS, "rmse"

    def __init__(self, labels: Sequence[str], std: float = 1.0) -> None:
        super().__init__(labels)
        self.std = std

    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of `score_metrics`, and the loss: the mean squared error over the training variance."""
        del per_class
        metrics = score_metrics(logits[:, 0], targets)
        return {"loss": (metrics["rmse"] / self.std) ** 2} | metrics

    def say(self, logits: Tensor) -> NDArray[Any]:
        """Return scores."""
        scores: NDArray[Any] = logits.float().numpy()
        return scores

    def confusion(self, logits: Tensor, targets: Tensor) -> list[list[int]]:
        """Return nothing."""
        del logits, targets
        return []

    def temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return 1."""
        del logits, targets
        return 1.0

    def calibrated(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, float]:
        """Return nothing."""
        del logits, targets, temperature
        return {}

    def reliability(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, Bins]:
        """Return nothing."""
        del logits, targets, temperature
        return {}


def target_of(labels: Sequence[str], ordered: bool = False, scale: tuple[float, float] | None = None) -> Target:
    """Return the kind of target that labels are.

    Args:
        labels: the columns of the logits; one is a score.
        ordered: of classes.
        scale: mean and standard deviation of the training scores.
    """
    if is_score(labels):
        return Scores(labels, 1.0 if scale is None else scale[1])
    return Classes(labels, ordered)
