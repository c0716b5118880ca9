"""Tests of differences: as statsmodels has them, and rejecting no more often than they promise."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as theirs
from statsmodels.stats.multitest import multipletests

from sentexp.compare.metric_sums import measured
from sentexp.compare.significance import correct, mcnemar, permutation, ranks


def test_mcnemar_agrees_with_statsmodels_on_a_published_table():
    """The approval of a prime minister, asked twice (Agresti 2002, Categorical Data Analysis, table 10.1)."""
    first = np.repeat([True, True, False, False], [794, 150, 86, 570])
    second = np.repeat([True, False, True, False], [794, 150, 86, 570])
    found = mcnemar(np.stack([first, second]))
    assert found[0, 1] == found[1, 0] == pytest.approx(theirs([[794, 150], [86, 570]], exact=True).pvalue, rel=1e-9)
    assert found[0, 1] == pytest.approx(3.7e-5, rel=0.05)
    assert found[0, 0] == 1


def test_corrections_are_those_of_the_papers():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert correct(p, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct(p, "fdr_bh") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    matrix = np.ones((3, 3))
    matrix[np.triu_indices(3, 1)] = [0.01, 0.03, 0.04]
    matrix = np.minimum(matrix, matrix.T)
    found = correct(matrix, "holm")
    assert found[0, 1] == found[1, 0] == pytest.approx(0.03)
    assert found[0, 2] == found[1, 2] == pytest.approx(0.06)
    assert correct(np.ones((1, 1)), "holm") == 1


@pytest.mark.parametrize("method", ["holm", "fdr_bh"])
def test_corrections_are_those_of_statsmodels(method):
    chance = np.random.default_rng(4)
    for count in (0, 1, 7, 500):
        p = np.round(chance.random(count) ** 3, 2)  # ties among them
        expected = multipletests(p, method=method)[1] if count else p
        assert correct(p, method) == pytest.approx(expected, rel=1e-12)


def test_equal_models_are_told_apart_in_at_most_5_of_100_sweeps():
    chance = np.random.default_rng(0)
    sweeps, wrong = 1000, 0
    for _ in range(sweeps):
        hard = chance.random(300)
        right = (hard + 0.3 * chance.normal(size=(4, 300))) < 0.8  # four models, alike, of correlated errors
        corrected = correct(mcnemar(right), "holm")
        wrong += bool((corrected <= 0.05).any())
    assert wrong / sweeps <= 0.05
    assert wrong > 0


def test_the_first_rank_holds_the_true_best():
    chance = np.random.default_rng(1)
    sweeps, held, shared = 1000, 0, 0
    for _ in range(sweeps):
        hard = chance.random(400)
        right = (hard + 0.2 * chance.normal(size=(5, 400))) < np.array([0.8, 0.82, 0.84, 0.7, 0.6])[:, None]
        found = ranks(right.mean(1), correct(mcnemar(right), "holm"), higher=True)
        held += found[2] == 1
        shared += (found == 1).sum()
    assert held / sweeps >= 0.95
    assert shared / sweeps < 4  # the clearly worse ones are not among them


def test_ranks_are_shared_by_what_cannot_be_told_apart():
    values = np.array([0.7, 0.9, 0.89, 0.71])
    apart = np.array([[1, 0.04, 0.04, 0.9], [0.04, 1, 0.06, 0.04], [0.04, 0.06, 1, 0.04], [0.9, 0.04, 0.04, 1]])
    assert ranks(values, apart, higher=True).tolist() == [2, 1, 1, 2]
    assert ranks(values, apart, higher=False).tolist() == [1, 2, 2, 1]
    assert ranks(values, apart, higher=True, alpha=0.1).tolist() == [3, 1, 2, 3]
    assert ranks(values, apart, higher=True, alpha=0.01).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "brier", "loss"])
def test_a_permutation_test_is_honest_and_finds_what_is_there(metric):
    chance = np.random.default_rng(2)

    def run(targets, skill):
        margin = chance.normal(size=len(targets)) + (2 * targets - 1) * skill
        positive = 1 / (1 + np.exp(-margin))
        return measured(targets, np.stack([1 - positive, positive], 1).astype(np.float32))

    equal = []
    for _ in range(300):
        targets = chance.integers(0, 2, 100)
        equal.append(permutation(run(targets, 1.0), run(targets, 1.0), metric, 199, 0))
    assert np.mean(np.array(equal) <= 0.05) <= 0.085  # 0.05 and three standard errors
    targets = chance.integers(0, 2, 400)
    assert permutation(run(targets, 2.0), run(targets, 0.3), metric, 999, 0) <= 0.01


def test_a_permutation_test_of_accuracies_is_mcnemars():
    chance = np.random.default_rng(3)
    targets = chance.integers(0, 2, 300)
    said = [np.where(chance.random(300) < skill, targets, 1 - targets) for skill in (0.85, 0.79)]
    runs = [measured(targets, np.eye(2, dtype=np.float32)[each]) for each in said]
    exact = mcnemar(np.stack([each == targets for each in said]))[0, 1]
    assert permutation(*runs, "accuracy", 20_000, 0) == pytest.approx(exact, abs=0.01)
