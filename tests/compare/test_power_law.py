"""The power law through a learning curve is the one that the points were made by."""

import math

import numpy as np
import pytest

from sentexp.compare.power_law import PowerLaw, fit_power_law

ROWS = [100, 300, 1000, 3000, 10_000]


@pytest.mark.parametrize(
    "law",
    [
        PowerLaw(limit=0.08, scale=2.0, power=0.5),
        PowerLaw(limit=0.0, scale=0.6, power=0.2),
        PowerLaw(limit=0.13, scale=20.0, power=1.1),
    ],
)
def test_the_law_is_recovered(law):
    found = fit_power_law(ROWS, [law.at(rows) for rows in ROWS])
    assert found.limit == pytest.approx(law.limit, abs=2e-3)
    assert found.power == pytest.approx(law.power, rel=2e-2)
    assert found.scale == pytest.approx(law.scale, rel=5e-2)
    assert found.at(30_000) == pytest.approx(law.at(30_000), abs=1e-3)


def test_noise_moves_the_law_a_little():
    law, chance = PowerLaw(limit=0.08, scale=2.0, power=0.5), np.random.default_rng(0)
    sizes = np.geomspace(100, 20_000, 12)
    errors = [law.at(rows) + 0.004 * chance.normal() for rows in sizes]
    found = fit_power_law(sizes, errors)
    assert found.rows_for(0.10) == pytest.approx(law.rows_for(0.10), rel=0.25)
    again = fit_power_law(sizes, errors, near=found)
    assert again.at(50_000) == pytest.approx(found.at(50_000), abs=1e-4)


def test_the_rows_for_an_error_are_the_inverse_of_the_error_after_rows():
    law = PowerLaw(limit=0.08, scale=2.0, power=0.5)
    assert law.at(law.rows_for(0.1)) == pytest.approx(0.1)
    assert law.rows_for(0.1) == pytest.approx(10_000)
    assert law.rows_for(0.08) == law.rows_for(0.01) == math.inf
    assert law.rows_for(5.0) == 1


def test_a_curve_that_does_not_fall_has_its_level_as_its_limit():
    found = fit_power_law(ROWS, [0.2] * 5)
    assert (found.limit, found.at(1_000_000)) == (0.2, 0.2)
    assert found.rows_for(0.1) == math.inf
    assert found.rows_for(0.3) == 1
    rising = fit_power_law(ROWS, [0.1, 0.12, 0.14, 0.16, 0.18])
    assert rising.at(10**6) == pytest.approx(0.14, abs=0.01)


def test_errors_of_zero_and_few_sizes():
    found = fit_power_law(ROWS, [0.4, 0.1, 0.02, 0.0, 0.0])
    assert found.at(100_000) == pytest.approx(0, abs=0.01)
    with pytest.raises(ValueError, match="4 sizes, not 3"):
        fit_power_law([100, 100, 200, 300], [0.3, 0.3, 0.2, 0.1])
