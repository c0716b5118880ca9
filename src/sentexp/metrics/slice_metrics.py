"""Metrics of the slices of a split."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sentexp.config.metric_names import safe_names
from sentexp.data.batch import target_tensor
from sentexp.data.splits import Examples, duplicate_free
from sentexp.metrics.target import Target


def slice_scores(examples: Examples, logits: Tensor, target: Target) -> dict[str, float]:
    """Return `test/<slice>/<metric>` for each slice of the test split, and for the rows whose text is nowhere else.

    Args:
        examples: of the run.
        logits: of the test rows, in order, shape (rows, classes).
        target: what they are measured as.
    """
    masks = {"duplicate_free": torch.from_numpy(duplicate_free(examples))}
    for column, values in examples.slices("test").items():
        safe = safe_names(values)
        masks |= {f"{column}/{safe[value]}": torch.from_numpy(mask) for value, mask in values.items()}
    targets = target_tensor(examples.targets("test"))
    return {f"test/{k}": v for k, v in slice_metrics(target, logits, targets, masks).items()}


def slice_metrics(target: Target, logits: Tensor, targets: Tensor, slices: Mapping[str, Tensor]) -> dict[str, float]:
    """Return `<slice>/rows`, `<slice>/accuracy` and so on for each slice; what a slice cannot tell is left out.

    Args:
        target: what rows are measured as.
        logits: float32, shape (rows, classes).
        targets: class indices or scores, shape (rows,), or sets of labels, shape (rows, labels).
        slices: by name, the mask of its rows, shape (rows,).
    """
    values: dict[str, float] = {}
    for name, mask in slices.items():
        values[f"{name}/rows"] = float(mask.sum())
        if mask.any():
            computed = target.measure(logits[mask], targets[mask])
            known = [key for key in target.kind.short if math.isfinite(computed.get(key, math.nan))]
            values |= {f"{name}/{key}": computed[key] for key in known}
    return values
