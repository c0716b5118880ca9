"""The names of metrics, and whether more of one is better."""

METRICS = ("loss", "accuracy", "auroc_macro", "f1_macro", "precision_macro", "recall_macro", "ece", "brier")
"""The metrics of every split; the classes that a split does not hold stay out of the macro averages."""

LOWER_IS_BETTER = ("loss", "ece", "brier")

SLICE_METRICS = ("accuracy", "f1_macro", "auroc_macro")
"""The metrics of a slice, and those that short tables show."""

COSTS = ("seconds", "train/seconds", "peak_memory_gib", "parameters/trainable")
"""What a run costs, by the names of its metrics."""

BINS = 15
"""Of the expected calibration error, and of reliability plots."""


def is_better_higher(metric: str) -> bool:
    """Tell whether more of a metric is better; its split may precede its name, as in `validation/loss`."""
    return metric.rpartition("/")[2] not in LOWER_IS_BETTER
