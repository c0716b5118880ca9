"""Metrics of scores equal scikit-learn's and scipy's; what rows cannot tell is left out."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from sentexp.config import TargetKind
from sentexp.metrics.score_metrics import score_metrics
from sentexp.metrics.slice_metrics import slice_metrics
from sentexp.metrics.target import Classes, LabelSets, Scores, target_of


@pytest.fixture
def pairs():
    """Return true and predicted scores, with ties."""
    chance = np.random.default_rng(0)
    true = chance.integers(1, 6, 100).astype(np.float32)
    return true, (true + chance.normal(size=100)).round(1).astype(np.float32)


def test_they_equal_those_of_other_libraries(pairs):
    true, said = pairs
    found = score_metrics(torch.tensor(said), torch.tensor(true))
    assert found == pytest.approx(
        {
            "rmse": root_mean_squared_error(true, said),
            "mae": mean_absolute_error(true, said),
            "pearson": pearsonr(true, said).statistic,
            "spearman": spearmanr(true, said).statistic,
        },
        abs=1e-6,
    )


def test_a_constant_side_has_no_correlation():
    assert set(score_metrics(torch.ones(3), torch.tensor([1.0, 2, 3]))) == {"rmse", "mae"}


def test_the_loss_is_1_for_the_mean():
    true = torch.tensor([1.0, 3, 5, 7])
    std = float(true.std(correction=0))
    measured = Scores(["score"], std).measure(torch.full((4, 1), 4.0), true)
    assert measured["loss"] == pytest.approx(1)


def test_slices_are_measured_by_themselves(pairs):
    true, said = map(torch.tensor, pairs)
    mask = torch.arange(100) < 40
    values = slice_metrics(Scores(["score"]), said[:, None], true, {"some": mask})
    assert values["some/rows"] == 40
    assert values["some/mae"] == pytest.approx(mean_absolute_error(true[:40], said[:40]), abs=1e-6)
    assert "some/spearman" not in values


def test_rows_are_measured_as_what_is_predicted():
    assert isinstance(target_of(TargetKind.scores, ["score"], scale=(1.0, 2.0)), Scores)
    assert isinstance(target_of(TargetKind.classes, ["a", "b"]), Classes)
    assert isinstance(target_of(TargetKind.label_sets, ["a", "b"]), LabelSets)
