"""What rows are measured as: classes, classes in their order, or scores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from sentexp.config.metric_names import is_score, short_metrics
from sentexp.metrics.calibration import fit_temperature, reliability
from sentexp.metrics.score_metrics import score_metrics
from sentexp.metrics.split_metrics import confusion_matrix, split_metrics

Bins = list[tuple[float, float, int]]


class Target(ABC):
    """A kind of target: what is measured of its rows. What needs classes is empty here.

    Args:
        labels: the columns of the logits: class names, or the one name of a score.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    @property
    def headline(self) -> str:
        """The metric that is looked at first."""
        return short_metrics(self.labels)[0]

    @abstractmethod
    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of rows by name."""

    def confusion(self, logits: Tensor, targets: Tensor) -> list[list[int]]:
        """Return counts of true classes (rows) against predicted ones (columns)."""
        del logits, targets
        return []

    def temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return what logits are divided by, so that probabilities are calibrated."""
        del logits, targets
        return 1.0

    def calibrated(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, float]:
        """Return the metrics that a temperature changes, by their names in a run."""
        del logits, targets, temperature
        return {}

    def reliability(self, logits: Tensor, targets: Tensor, temperature: float) -> dict[str, Bins]:
        """Return the curves of accuracy over confidence, by name."""
        del logits, targets, temperature
        return {}


class Classes(Target):
    """Classes; where they are ordered, distances are measured as well."""

    def __init__(self, labels: Sequence[str], ordered: bool = False) -> None:
        super().__init__(labels)
        self.ordered = ordered

    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of `split_metrics`."""
        return split_metrics(self.labels, logits, targets, per_class, self.ordered)

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

    def __init__(self, labels: Sequence[str], std: float = 1.0) -> None:
        super().__init__(labels)
        self.std = std

    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of `score_metrics`, and the loss: the mean squared error over the training variance."""
        del per_class
        metrics = score_metrics(logits[:, 0], targets)
        return {"loss": (metrics["rmse"] / self.std) ** 2} | metrics


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
