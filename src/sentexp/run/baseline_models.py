"""The simple models of the baselines: what the training targets alone say, and regressions on features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentexp.config import TargetKind
from sentexp.data.text_hash import Numbers
from sentexp.run.inputs import RunInputs

EVALUATED = ("validation", "test")
RAREST = 1e-6
"""The least frequency that a class or label is taken to have."""
SURE = 1e-9
"""The least probability, before its logarithm."""


def majority(inputs: RunInputs) -> dict[str, Tensor]:
    """Return the log-frequency of the classes in train, the mean of its scores, or how frequent each label is.

    They are the same for every row, shape (rows, classes), by split.
    """
    examples = inputs.examples
    train = examples.targets("train")
    if examples.kind is TargetKind.label_sets:
        frequency = torch.from_numpy(train.mean(0)).float().clamp(RAREST, 1 - RAREST)
        said = frequency.logit()
    elif (scale := examples.scale()) is not None:
        said = torch.tensor([scale[0]])
    else:
        counts = np.bincount(train, minlength=len(examples.labels))
        said = torch.from_numpy(counts / counts.sum()).float().clamp(min=RAREST).log()
    return {split: said.repeat(examples.split(split).num_rows, 1) for split in EVALUATED}


def most_frequent_set(members: Numbers) -> list[float]:
    """Return thresholds under which every row is said to have the set of labels that most rows have.

    Args:
        members: 1 where a training row has a label, shape (rows, labels).
    """
    sets, counts = np.unique(members, axis=0, return_counts=True)
    return [float(1 - held) for held in sets[counts.argmax()].tolist()]


def regression(
    features: dict[str, Any], targets: dict[str, Numbers], strengths: tuple[float, ...], classes: int
) -> dict[str, Tensor]:
    """Return what a regression fitted on train says of validation and test rows, by split, shape (rows, classes).

    It is logistic, and gives log-probabilities; of labels of which a text has any number there is one for each, and
    they give logits; of one class, a score, it is a ridge regression. Its strength, the inverse of the penalty, is the
    one with the least loss on validation.
    """
    if targets["train"].ndim > 1:
        return _one_for_each(features, targets, strengths)
    return _ridge(features, targets, strengths) if classes == 1 else _logistic(features, targets, strengths, classes)


def _logistic(
    features: dict[str, Any], targets: dict[str, Numbers], strengths: tuple[float, ...], classes: int
) -> dict[str, Tensor]:
    from sklearn.linear_model import LogisticRegression

    def score(fitted: Any, split: str) -> Tensor:
        probabilities = torch.full((features[split].shape[0], classes), SURE)  # a class that train lacks
        probabilities[:, fitted.classes_.tolist()] = torch.from_numpy(fitted.predict_proba(features[split])).float()
        return probabilities.clamp(min=SURE).log()

    def loss(fitted: Any) -> float:
        return float(nn.functional.nll_loss(score(fitted, "validation"), torch.tensor(targets["validation"]).long()))

    fits = [LogisticRegression(C=c, max_iter=1000).fit(features["train"], targets["train"]) for c in strengths]
    return _said(min(fits, key=loss), score)


def _one_for_each(
    features: dict[str, Any], targets: dict[str, Numbers], strengths: tuple[float, ...]
) -> dict[str, Tensor]:
    """Return logits of labels; a label that train always has, or never, is as frequent everywhere."""
    columns = []
    for label in range(targets["train"].shape[1]):
        own = {split: values[:, label] for split, values in targets.items()}
        if len(np.unique(own["train"])) > 1:
            chances = {split: each.exp()[:, 1:] for split, each in _logistic(features, own, strengths, 2).items()}
        else:
            chances = {split: torch.full((len(own[split]), 1), float(own["train"][0])) for split in EVALUATED}
        columns.append({split: each.clamp(RAREST, 1 - RAREST).logit() for split, each in chances.items()})
    return {split: torch.cat([column[split] for column in columns], 1) for split in EVALUATED}


def _ridge(features: dict[str, Any], targets: dict[str, Numbers], strengths: tuple[float, ...]) -> dict[str, Tensor]:
    """Return scores of the ridge regression with the least squared error on validation."""
    from sklearn.linear_model import Ridge

    def error(fitted: Any) -> float:
        return float(np.square(fitted.predict(features["validation"]) - targets["validation"]).mean())

    # half the inverse, as scikit-learn's logistic loss is a sum over rows and its ridge penalty has no half
    fits = [Ridge(alpha=1 / (2 * c)).fit(features["train"], targets["train"]) for c in strengths]
    return _said(
        min(fits, key=error), lambda fitted, split: torch.from_numpy(fitted.predict(features[split])).float()[:, None]
    )


def _said(fitted: Any, score: Callable[[Any, str], Tensor]) -> dict[str, Tensor]:
    return {split: score(fitted, split) for split in EVALUATED}
