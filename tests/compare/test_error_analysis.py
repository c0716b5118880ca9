"""Single rows: disagreements, confident errors, likely label errors, with their texts."""

import numpy as np
import pytest

from sentexp.compare.comparison import load
from sentexp.compare.error_analysis import confident_errors, disagreements, head_to_head, label_errors
from sentexp.errors import UserError


@pytest.fixture
def two(record, comparing):
    """Return a comparison of two runs with their files."""
    return load(comparing(runs=[record("a", 0.4, **{"peft.r": 1}), record("b", 2.0, **{"peft.r": 2})]))


def right(comparison):
    return [one.runs[0].probabilities.argmax(1) == comparison.targets for one in comparison.configurations]


def test_disagreements_are_the_rows_that_one_gets_right(two):
    table = disagreements(two, "a", "b")
    first, second = right(two)
    assert sorted(table["id"]) == sorted(two.ids[first != second])
    for _, row in table.iterrows():
        number = two.ids.tolist().index(row["id"])
        assert row["text"].startswith(f"film {number} is")
        assert row["label"] == two.labels[two.targets[number]]
        assert (row["right"] == "a") == first[number]
        assert (row["a says"] == row["label"]) == first[number]
        assert row["a p"] == pytest.approx(two.configurations[0].runs[0].probabilities[number, two.targets[number]])
        assert row["language"] == ("de" if number % 3 == 0 else "en")
    gaps = (table["a p"] - table["b p"]).abs()
    assert gaps.is_monotonic_decreasing


def test_head_to_head_counts_every_row_once(two):
    found = head_to_head(two, "a", "b", permutations=499)
    first, second = right(two)
    assert found["only_a_right"] == (first & ~second).sum()
    assert found["only_b_right"] == (~first & second).sum()
    assert sum(found[key] for key in ("both_right", "only_a_right", "only_b_right", "both_wrong")) == len(two.ids)
    assert found["difference"] == pytest.approx(first.mean() - second.mean())
    assert found["permutation_p"] == pytest.approx(found["mcnemar_p"], abs=0.05)
    assert "permutation_p" not in head_to_head(two, "a", "b", metric="auroc_macro")


def test_head_to_head_takes_the_metrics_of_ordered_classes(two):
    found = head_to_head(two, "a", "b", metric="qwk", permutations=499)
    first, second = right(two)
    # with two balanced classes, kappa is about 1 - 2 * errors
    assert found["difference"] == pytest.approx(2 * (first.mean() - second.mean()), abs=0.05)
    assert found["permutation_p"] < 0.05
    with pytest.raises(UserError, match="metric=rmse measures scores, and these runs predict classes"):
        head_to_head(two, "a", "b", metric="rmse")


@pytest.mark.parametrize("name", ["label", "p", "right"])
def test_a_slice_of_the_name_of_a_column_is_told_from_it(two, name):
    wanted = confident_errors(two, "a")
    two.slices[name] = two.slices.pop("language")
    found = confident_errors(two, "a")
    assert found[["text", "label", "predicted", "p"]].equals(wanted[["text", "label", "predicted", "p"]])
    assert found[f"slice.{name}"].tolist() == wanted["language"].tolist()
    assert set(disagreements(two, "a", "b")["right"]) == {"a", "b"}


def test_confident_errors_are_wrong_and_sorted(two):
    table = confident_errors(two, "a", most=5)
    assert len(table) == 5
    assert (table["label"] != table["predicted"]).all()
    assert table["p"].is_monotonic_decreasing
    said = two.configurations[0].runs[0].probabilities
    assert table["p"][0] == pytest.approx(said.max(1)[~right(two)[0]].max())


def test_a_wrong_label_is_found(two):
    for one in two.configurations:
        sure = np.where(np.eye(2)[two.targets] > 0, 0.97, 0.03).astype(np.float32)
        one.runs[0].probabilities[:] = sure
    two.targets[17] = 1 - two.targets[17]
    table = label_errors(two)
    assert table["id"].tolist() == [two.ids[17]]
    assert table["suggested"][0] != table["label"][0]


def test_an_unknown_name_is_refused(two):
    with pytest.raises(UserError, match="b=c is not among what is compared: it must be one of a, b"):
        disagreements(two, "a", "c")


def test_a_configuration_is_not_set_against_itself(simulate):
    with pytest.raises(UserError, match="a=r=1 and b=r=1-1 are the same configuration: name two"):
        disagreements(simulate((("r=1", 1.0, 1),)), "r=1", "r=1-1")
