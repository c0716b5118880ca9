"""The metrics of scores on resamples are those of the rows that are drawn."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from sentexp.compare.bootstrap import weights
from sentexp.compare.error_analysis import confident_errors
from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.metric_sums import measured, resampled
from sentexp.config.metric_names import SCORE_METRICS
from sentexp.errors import UserError


@pytest.fixture
def rows():
    """Return true scores far from 0, and predicted ones, shape (rows, 1)."""
    chance = np.random.default_rng(1)
    true = 1000 + 10 * chance.normal(size=200)
    return true, (true + 5 * chance.normal(size=200)).astype(np.float32)[:, None]


def test_they_are_those_of_the_rows(rows):
    true, said = rows
    run = measured(true, said, SCORE_METRICS)
    errors = said[:, 0] - true
    wanted = {
        "rmse": np.sqrt(np.mean(errors**2)),
        "mae": np.abs(errors).mean(),
        "pearson": pearsonr(true, said[:, 0]).statistic,
        "spearman": spearmanr(true, said[:, 0]).statistic,
    }
    assert run.whole() == pytest.approx(wanted, rel=1e-4)
    drawn = next(weights(200, 20, 0))
    found = resampled([run], drawn)
    for number, counts in enumerate(drawn.astype(int)):
        picked = np.repeat(np.arange(200), counts)
        assert found["rmse"][0, number] == pytest.approx(np.sqrt(np.mean(errors[picked] ** 2)), rel=1e-4)
        assert found["pearson"][0, number] == pytest.approx(pearsonr(true[picked], said[picked, 0])[0], abs=1e-4)
        assert found["spearman"][0, number] == pytest.approx(spearmanr(true[picked], said[picked, 0])[0], abs=0.02)
    without = run.without_each()["mae"][7]
    assert without == pytest.approx(np.abs(np.delete(errors, 7)).mean(), rel=1e-4)


def test_a_constant_prediction_has_no_correlation(rows):
    true, said = rows
    assert np.isnan(measured(true, np.full_like(said, 3), SCORE_METRICS).whole()["pearson"])


def scored(comparison):
    """Make the comparison one of scores."""
    comparison.labels = ["score"]
    chance = np.random.default_rng(2)
    comparison.targets = chance.normal(size=len(comparison.targets))
    for noise, one in enumerate(comparison.configurations, start=1):
        for run in one.runs:
            said = comparison.targets + noise * chance.normal(size=len(comparison.targets))
            run.probabilities = said[:, None].astype(np.float32)
    return comparison


def test_the_leaderboard_ranks_by_the_smaller_error(simulate):
    comparison = scored(simulate([("r=1", 1, 1), ("r=2", 1, 1)]))
    board = leaderboard(comparison, "rmse", resamples=200)
    assert board.metrics == SCORE_METRICS
    assert board.table["configuration"].tolist() == ["r=1", "r=2"]
    assert board.table["rank"].tolist() == [1, 2]
    first = board.table.iloc[0]
    assert first["rmse_low"] < first["rmse"] < first["rmse_high"]
    assert first["rmse"] == pytest.approx(1, abs=0.15)


def test_what_counts_classes_is_refused(simulate):
    comparison = scored(simulate([("r=1", 1, 1)]))
    with pytest.raises(UserError, match=r"metric=accuracy measures classes, and these runs predict scores: use rmse"):
        leaderboard(comparison, "accuracy")
    with pytest.raises(UserError, match=r"confident_errors counts classes"):
        confident_errors(comparison, "r=1")
    with pytest.raises(UserError, match=r"metric=rmse measures scores, and these runs predict classes: use loss"):
        leaderboard(simulate([("r=1", 1, 1)]), "rmse")
