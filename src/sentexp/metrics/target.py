"""What rows are measured as: classes, classes in their order, scores, or sets of labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from sentexp.config import TargetKind
from sentexp.metrics.calibration import fit_temperature, reliability
from sentexp.metrics.label_set_metrics import USUAL, best_thresholds, label_counts, label_set_metrics
from sentexp.metrics.score_metrics import score_metrics
from sentexp.metrics.split_metrics import confusion_matrix, split_metrics

Bins = list[tuple[float, float, int]]


class Target(ABC):
    """A kind of target: what is measured of its rows. What needs classes is empty here.

    Args:
        labels: the columns of the logits: class names, or the one name of a score.
    """

    kind: TargetKind
    thresholds: list[float] | None = None
    """From which probability each label holds, where a text has any number of them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def choose(self, logits: Tensor, targets: Tensor) -> None:
        """Choose what validation rows decide, before others are measured."""
        del logits, targets

    @abstractmethod
    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of rows by name."""

    def confusion(self, logits: Tensor, targets: Tensor) -> list[list[int]]:
        """Return counts of true classes (rows) against predicted ones (columns), or for each label those of its own."""
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

    kind = TargetKind.classes

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

    kind = TargetKind.scores

    def __init__(self, labels: Sequence[str], std: float = 1.0) -> None:
        super().__init__(labels)
        self.std = std

    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of `score_metrics`, and the loss: the mean squared error over the training variance."""
        del per_class
        metrics = score_metrics(logits[:, 0], targets)
        return {"loss": (metrics["rmse"] / self.std) ** 2} | metrics


class LabelSets(Target):
    """Any number of labels for a text, each by a threshold of its own.

    Args:
        labels: the columns of the logits.
        thresholds: that are chosen already.
    """

    kind = TargetKind.label_sets
    thresholds: list[float]

    def __init__(self, labels: Sequence[str], thresholds: Sequence[float] | None = None) -> None:
        super().__init__(labels)
        self.thresholds = [USUAL] * len(self.labels) if thresholds is None else list(thresholds)

    def choose(self, logits: Tensor, targets: Tensor) -> None:
        """Choose the thresholds under which each label has the best F1."""
        self.thresholds = best_thresholds(logits.float().sigmoid(), targets)

    def measure(self, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
        """Return the metrics of `label_set_metrics`."""
        return label_set_metrics(self.labels, logits, targets, self.thresholds, per_class)

    def confusion(self, logits: Tensor, targets: Tensor) -> list[list[int]]:
        """Return the counts of `label_counts`."""
        return label_counts(logits, targets, self.thresholds)


def target_of(
    kind: TargetKind,
    labels: Sequence[str],
    ordered: bool = False,
    scale: tuple[float, float] | None = None,
    thresholds: Sequence[float] | None = None,
) -> Target:
    """Return what rows are measured as.

    Args:
        kind: what is predicted.
        labels: the columns of the logits.
        ordered: of classes.
        scale: mean and standard deviation of the training scores.
        thresholds: from which each label of a set holds, where that is chosen already.
    """
    match kind:
        case TargetKind.scores:
            return Scores(labels, 1.0 if scale is None else scale[1])
        case TargetKind.label_sets:
            return LabelSets(labels, thresholds)
    return Classes(labels, ordered)
