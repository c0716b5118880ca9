"""Labels that are probably wrong: as the library cleanlab finds them, and as counted by hand."""

import numpy as np
import pytest

from sentexp.compare.confident_learning import doubted_rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_two_classes_are_judged_as_by_cleanlab(seed):
    from cleanlab.filter import find_label_issues

    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, 300)
    positive = np.clip(draw.normal(0.3 + 0.4 * labels, 0.2), 0.01, 0.99)
    probabilities = np.stack([1 - positive, positive], 1)
    theirs = find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert doubted_rows(labels, probabilities).tolist() == theirs.tolist()
    assert len(theirs)


def test_a_label_is_doubted_where_another_class_is_confidently_said():
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.array([
        [0.9, 0.1, 0.0],
        [0.2, 0.8, 0.0],  # class 1 has a mean of 0.7 on its rows, and this is above it
        [0.4, 0.6, 0.0],  # below it: nothing is confidently said
        [0.1, 0.9, 0.0],
        [0.45, 0.55, 0.0],
        [0.0, 0.1, 0.9],
    ])  # fmt: skip
    assert doubted_rows(labels, probabilities).tolist() == [1]


def test_the_least_probable_label_comes_first_and_a_class_without_rows_is_never_suggested():
    labels = np.array([0, 0, 0, 0, 1, 1])
    probabilities = np.array([
        [0.2, 0.8, 0.0],
        [0.1, 0.9, 0.0],
        [0.9, 0.1, 0.0],
        [0.0, 0.0, 1.0],  # no row is labelled 2
        [0.3, 0.7, 0.0],
        [0.2, 0.8, 0.0],
    ])  # fmt: skip
    assert doubted_rows(labels, probabilities).tolist() == [1, 0]
