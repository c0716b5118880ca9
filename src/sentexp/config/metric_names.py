"""The names of metrics, and whether more of one is better."""

import re
from collections.abc import Iterable, Sequence

METRICS = ("loss", "accuracy", "auroc_macro", "f1_macro", "precision_macro", "recall_macro", "ece", "brier")
"""The metrics of every split; the classes that a split does not hold stay out of the macro averages."""

ORDERED_METRICS = ("mae", "qwk", "within_one")
"""The metrics of ordered classes, beside the others: see `sentexp.metrics.ordered_metrics`."""

SCORE_METRICS = ("rmse", "mae", "pearson", "spearman")
"""The metrics of scores: root mean squared and mean absolute error, correlation of the values and of their ranks."""

RUN_SCORE_METRICS = ("loss", *SCORE_METRICS)
"""Those of a split; its loss is the mean squared error over the variance of the training scores."""

LABEL_SET_METRICS = (
    "f1_macro",
    "f1_micro",
    "subset_accuracy",
    "hamming",
    "auroc_macro",
    "precision_macro",
    "recall_macro",
    "loss",
)
"""The metrics of several labels a text that are compared.

`f1_micro` counts the decisions on all labels together, `subset_accuracy` the texts with all labels right, and `hamming`
is the share of wrong decisions. The labels that a split does not hold stay out of the macro averages.
"""

RUN_LABEL_SET_METRICS = (*LABEL_SET_METRICS, "ap_macro")
"""Those of a split: also the mean over the labels of their average precision (mAP)."""

COMPARED = tuple(dict.fromkeys((*METRICS, *ORDERED_METRICS, *SCORE_METRICS, *LABEL_SET_METRICS)))
"""Everything that `compare` ranks by."""

MEASURED = tuple(dict.fromkeys((*COMPARED, *RUN_LABEL_SET_METRICS)))
"""The metrics that any run may have of a split."""

LOWER_IS_BETTER = ("loss", "ece", "brier", "mae", "rmse", "hamming")

PER_CLASS = ("f1", "precision", "recall", "auroc", "ap")
"""The metrics of each class: `f1_<class>`, in the safe form of its name; the last two where a text has several."""

SLICE_METRICS = ("accuracy", "f1_macro", "auroc_macro")
"""The metrics of a slice, and those that short tables show."""

SCORE_SLICE_METRICS = ("rmse", "mae", "pearson")
"""Those of scores."""

LABEL_SET_SLICE_METRICS = ("f1_macro", "f1_micro", "subset_accuracy")
"""Those of several labels a text."""

SCORE = "score"
"""The one label of a run that predicts scores."""

COSTS = ("seconds", "train/seconds", "peak_memory_gib", "parameters/trainable")
"""What a run costs, by the names of its metrics."""

BINS = 15
"""Of the expected calibration error, and of reliability plots."""


def is_better_higher(metric: str) -> bool:
    """Tell whether more of a metric is better; its split may precede its name, as in `validation/loss`."""
    return metric.rpartition("/")[2] not in LOWER_IS_BETTER


LONGEST_PART = 200
"""Characters of a class name within that of a metric; MLflow takes 250 in all."""


def safe_names(names: Iterable[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Return for each name another one that MLflow takes in the name of a metric, all different.

    Letters of any script, digits, blanks and _ - . : stay, others become _; names that are then alike end in more.

    Args:
        names: of classes, or values of a slice.
        taken: what none may be called.
    """
    safe: dict[str, str] = {}
    for name in names:
        one = re.sub(r"[^\w .:-]", "_", name)[:LONGEST_PART] or "none"
        while one in safe.values() or one in taken:
            one += "_"
        safe[name] = one
    return safe


def safe_classes(labels: Sequence[str]) -> dict[str, str]:
    """Return the safe form of each class; none is called as an average is."""
    return safe_names(labels, ("macro", "micro"))


def shown_names(labels: Sequence[str]) -> dict[str, str]:
    """Return for the metrics of each class the name that people see, by the safe one."""
    return {
        f"{metric}_{safe}": f"{metric}_{name}" for name, safe in safe_classes(labels).items() for metric in PER_CLASS
    }
