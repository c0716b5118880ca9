"""Tests and intervals with few seeds: never too sure, and a stated difference is found as often as stated."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, norm, t

from sentexp.compare.rows_and_seeds import detectable, half_width, p_value


@pytest.mark.parametrize("freedom", [1, 2, 4, 12, 300])
def test_rows_alone_make_it_normal_and_seeds_alone_students(freedom):
    gaps = np.array([0.5, -1.5, 2.5])
    assert p_value(gaps, 1.0, 0.0, freedom) == pytest.approx(2 * norm.sf(abs(gaps)))
    assert p_value(gaps, 0.0, 1.0, freedom) == pytest.approx(2 * t.sf(abs(gaps), freedom), rel=1e-3)
    assert half_width(1.0, 0.0, freedom, 0.95) == pytest.approx(norm.ppf(0.975))
    assert half_width(0.0, 1.0, freedom, 0.95) == pytest.approx(t.ppf(0.975, freedom), rel=1e-3)


def test_an_interval_ends_where_the_test_rejects():
    by_rows, by_seeds = np.array([1e-4, 4e-4, 9e-4]), np.array([3e-4, 1e-4, 0.0])
    for freedom in (1, 2, 8):
        ends = half_width(by_rows, by_seeds, freedom, 0.9)
        assert p_value(ends, by_rows, by_seeds, freedom) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("freedom", [1, 2, 4, 8, 14])
def test_equal_configurations_are_never_declared_different_too_often(freedom):
    """The error is normal, the variance of the seeds is found as chi-squared says: 5 % at most, whatever their part."""
    found = chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom
    for share in np.linspace(0, 1, 21):
        false = 2 * norm.sf(half_width(1 - share, share * found, freedom, 0.95)).mean()
        assert 0.01 < false < 0.0505


@pytest.mark.parametrize(("freedom", "share"), [(1, 1.0), (2, 1.0), (2, 0.5), (8, 1.0), (8, 0.4), (0, 0.0)])
def test_the_stated_difference_is_found_in_four_of_five_cases(freedom, share):
    """What one experiment states, another of the same true variances finds; more often where rows are a part of it."""
    chance = np.random.default_rng(0)
    first, second = (share * chance.chisquare(max(1, freedom), (2, 4000)) / max(1, freedom)) if share else (0, 0)
    scales = np.sqrt(1 - share + np.geomspace(1e-4, 30, 40) * share)
    stated = [detectable(1 - share, scale**2 - (1 - share), freedom) for scale in scales]
    gaps = np.interp(np.sqrt(1 - share + np.broadcast_to(first, 4000)), scales, stated)
    needed = half_width(1 - share, second, freedom, 0.95)
    found = np.mean(gaps + chance.normal(size=4000) > needed)
    assert 0.775 < found < (0.825 if share in (0, 1) else 0.86)


def test_no_variance_is_no_evidence():
    assert p_value(0.01, 0.0, 0.0, 3) == 1
    assert half_width(0.0, 0.0, 3, 0.95) == 0
    assert detectable(0.0, 0.0, 3) == 0
    assert math.isnan(detectable(math.nan, 0.0, 3))
