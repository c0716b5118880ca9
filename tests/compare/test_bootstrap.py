"""Intervals: they cover the truth as often as they say, and agree with scipy and with published ones."""

import numpy as np
import pytest
from scipy import stats

from sentexp.compare.bootstrap import acceleration, bca, percentile, replicate, weights
from sentexp.compare.metric_sums import measured

SPATIAL = "48 36 20 29 42 42 20 42 22 41 45 14 6 0 33 28 34 4 32 24 47 41 24 26 30 41"
"""Efron and Tibshirani 1993, table 14.1, test A."""


def draw(chance, rows):
    """Return targets and probabilities of a classifier that is right in five of six cases."""
    targets = chance.integers(0, 2, rows)
    margin = 1.2 * chance.normal(size=rows) + (2 * targets - 1) * 1.2
    positive = 1 / (1 + np.exp(-margin))
    return targets, np.stack([1 - positive, positive], 1).astype(np.float32)


@pytest.mark.slow
def test_intervals_cover_the_truth_in_93_to_97_of_100_repetitions():
    chance = np.random.default_rng(0)
    truth = measured(*draw(chance, 1_000_000)).whole()
    names, rows, repetitions = ("accuracy", "f1_macro", "auroc_macro", "loss", "brier"), 200, 1000
    runs = [measured(*draw(chance, rows)) for _ in range(repetitions)]
    found = replicate(runs, rows, 1000, 0)
    covered = dict.fromkeys(names, 0)
    for number, run in enumerate(runs):
        values, without = run.whole(), run.without_each()
        for name in names:
            interval = bca(values[name], found[name][number], acceleration(without[name]), 0.95)
            covered[name] += interval.low <= truth[name] <= interval.high
    shares = {name: count / repetitions for name, count in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_paired_differences_are_covered_as_often():
    chance = np.random.default_rng(1)
    rows, repetitions, covered = 200, 1000, 0
    hits = chance.random((repetitions, 3, rows))
    first = hits[:, 0] < 0.85
    second = np.where(hits[:, 1] < 0.12, hits[:, 2] < 0.6, first)  # another answer to 12 % of the rows
    drawn = np.concatenate(list(weights(rows, 1000, 0)))
    gaps = (first.astype(np.float32) - second) @ drawn.T / rows
    truth = 0.85 - (0.88 * 0.85 + 0.12 * 0.6)
    for number in range(repetitions):
        interval = percentile(float(first[number].mean() - second[number].mean()), gaps[number], 0.95)
        covered += interval.low - 1e-6 <= truth <= interval.high + 1e-6  # differences are steps, as the truth is
    assert 0.93 <= covered / repetitions <= 0.97


def test_the_published_interval_of_a_variance():
    values = np.array(SPATIAL.split(), float)
    drawn = np.random.default_rng(0).choice(values, (20_000, len(values)))
    without = np.array([np.var(np.delete(values, number)) for number in range(len(values))])
    found = bca(float(np.var(values)), np.var(drawn, axis=1), acceleration(without), 0.90)
    assert found.value == pytest.approx(171.5, abs=0.05)
    assert found[1:] == pytest.approx((115.8, 259.6), rel=0.02)
    theirs = stats.bootstrap((values,), np.var, confidence_level=0.9, n_resamples=20_000, rng=1).confidence_interval
    assert found[1:] == pytest.approx(tuple(theirs), rel=0.02)


def test_an_accuracy_agrees_with_scipy():
    targets, probabilities = draw(np.random.default_rng(3), 120)
    run = measured(targets, probabilities)
    right = (probabilities.argmax(1) == targets).astype(float)
    found = bca(
        run.whole()["accuracy"],
        replicate([run], 120, 9999, 0)["accuracy"][0],
        acceleration(run.without_each()["accuracy"]),
        0.95,
    )
    theirs = stats.bootstrap((right,), np.mean, n_resamples=9999, rng=0).confidence_interval
    assert found[1:] == pytest.approx(tuple(theirs), abs=1 / 120 + 1e-6)


def test_what_has_no_spread_has_no_width():
    assert bca(1.0, np.ones(100), acceleration(np.ones(30)), 0.95) == (1, 1, 1)
    assert np.isnan(bca(float("nan"), np.full(100, np.nan), acceleration(np.full(30, np.nan)), 0.95)).all()


def test_resamples_do_not_depend_on_the_blocks(monkeypatch):
    whole = np.concatenate(list(weights(50, 40, 7)))
    monkeypatch.setattr("sentexp.compare.bootstrap.CELLS", 150)
    assert np.array_equal(np.concatenate(list(weights(50, 40, 7))), whole)
    assert whole.shape == (40, 50)
    assert (whole.sum(1) == 50).all()
