"""How small a difference a number of rows can show."""

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from sentexp.compare.sample_size import ALPHA, POWER, detectable, rows_needed, standard_error, wilson


@pytest.mark.parametrize(("difference", "disagreement"), [(0.03, 0.15), (0.05, 0.1)])
def test_mcnemar_finds_the_difference_with_the_power_that_is_promised(difference, disagreement):
    rows, chance = round(rows_needed(difference, disagreement)), np.random.default_rng(0)
    better, worse = (disagreement + difference) / 2, (disagreement - difference) / 2
    counts = chance.multinomial(rows, [better, worse, 1 - disagreement], size=4000)
    discordant = counts[:, 0] + counts[:, 1]
    statistic = (counts[:, 0] - counts[:, 1]) ** 2 / discordant
    found = (statistic > 3.841459).mean()
    assert ALPHA == 0.05
    assert found == pytest.approx(POWER, abs=0.03)


def test_the_detectable_difference_is_the_inverse_of_the_rows():
    assert detectable(round(rows_needed(0.02, 0.15)), 0.15) == pytest.approx(0.02, abs=1e-4)
    assert detectable(3, 0.15) == 0.15
    assert detectable(1000, 0.15) > detectable(10_000, 0.15)
    assert detectable(1000, 0.0) == 0.0


def test_the_standard_error_is_that_of_the_binomial():
    assert standard_error(0.85, 200) == pytest.approx(binom(200, 0.85).std() / 200)


def test_the_interval_of_a_share_is_that_of_statsmodels():
    right, rows = np.array([0.0, 3.0, 9.5, 40.0]), np.array([10.0, 10.0, 20.0, 40.0])
    theirs = proportion_confint(right, rows, alpha=0.1, method="wilson")
    assert np.allclose(wilson(right, rows, 0.9), theirs)
    assert np.allclose(wilson(3, 10), proportion_confint(3, 10, method="wilson"))
