"""What the label of a text is, and so what is measured: a class, a score, or a set of labels."""

from collections.abc import Collection, Sequence
from enum import Enum

from sentexp.config.metric_names import (
    LABEL_SET_METRICS,
    LABEL_SET_SLICE_METRICS,
    METRICS,
    ORDERED_METRICS,
    RUN_LABEL_SET_METRICS,
    RUN_SCORE_METRICS,
    SCORE_METRICS,
    SCORE_SLICE_METRICS,
    SLICE_METRICS,
)


class TargetKind(Enum):
    """One of several classes, a number, or any number of labels; the value is what people call several of them."""

    classes = "classes"
    scores = "scores"
    label_sets = "sets of labels"

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics that `compare` ranks by."""
        return _METRICS[self][0]

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics of every split."""
        return _METRICS[self][1]

    @property
    def short(self) -> tuple[str, ...]:
        """The metrics of a slice, and those that short tables show: the headline first."""
        return _METRICS[self][2]

    @property
    def headline(self) -> str:
        """The metric that is looked at first."""
        return self.short[0]


_METRICS = {
    TargetKind.classes: (METRICS, METRICS, SLICE_METRICS),
    TargetKind.scores: (SCORE_METRICS, RUN_SCORE_METRICS, SCORE_SLICE_METRICS),
    TargetKind.label_sets: (LABEL_SET_METRICS, RUN_LABEL_SET_METRICS, LABEL_SET_SLICE_METRICS),
}


def measured_kind(metric: str) -> TargetKind:
    """Return of what a metric is, of classes where it is of these and of others."""
    own = {name: kind for kind in reversed(TargetKind) for name in kind.measured}
    return (own | dict.fromkeys(ORDERED_METRICS, TargetKind.classes))[metric]


def kind_of(labels: Sequence[str], thresholds: object = None) -> TargetKind:
    """Return what is predicted, from what a run or its predictions hold.

    Args:
        labels: the columns of what a model says: class names, or the one name of a score.
        thresholds: from which a label holds, where a text has any number of them; else None.
    """
    if thresholds is not None:
        return TargetKind.label_sets
    return TargetKind.scores if len(labels) == 1 else TargetKind.classes


def kind_of_run(metrics: Collection[str]) -> TargetKind:
    """Return what a run predicts, from the names of its test metrics."""
    own = {TargetKind.label_sets: "test/subset_accuracy", TargetKind.scores: "test/rmse"}
    return next((kind for kind, name in own.items() if name in metrics), TargetKind.classes)
