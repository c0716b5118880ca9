"""Labels that are scores: read as numbers, divided by tenths, and refused where they are none."""

import numpy as np
import pytest

from sentexp.config import TargetKind, load_config
from sentexp.data.scores import quantile_bins, score_counts
from sentexp.data.splits import NAMES, load_examples
from sentexp.errors import UserError


@pytest.fixture
def table(tmp_path):
    """Return a table of 500 different scores, and the words that name it."""
    rows = [f"film {number},{number / 50 - 3}" for number in range(500)]
    (tmp_path / "scores.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return tmp_path / "scores.csv", ["data=csv", f"data.path={tmp_path / 'scores.csv'}", "data.labels=null"]


def test_more_than_100_values_are_read_as_numbers(table):
    examples = load_examples(load_config(*table[1]).data, kind=TargetKind.scores)
    assert examples.labels == ["score"]
    together = np.concatenate([examples.targets(name) for name in NAMES])
    np.testing.assert_allclose(np.sort(together), np.arange(500) / 50 - 3)
    with pytest.raises(UserError, match=r"500 different labels .* or learn them as scores with task.loss=regression"):
        load_examples(load_config(*table[1]).data)


def test_splits_and_subsets_hold_every_tenth_alike(table):
    examples = load_examples(load_config(*table[1], "data.train_subset=40").data, kind=TargetKind.scores)
    for name, each in (("validation", 5), ("test", 5), ("train", 4)):
        counts = np.histogram(examples.targets(name), np.linspace(-3, 7, 11))[0]
        assert counts.min() >= each - 1, name
        assert counts.max() <= each + 1, name
    mean, std = examples.scale()
    assert (mean, std) == pytest.approx((examples.targets("train").mean(), examples.targets("train").std()))


def test_equal_scores_are_in_one_bin():
    bins = quantile_bins(np.array([1.0] * 50 + [5.0] * 50))
    assert [len(set(bins[:50])), len(set(bins[50:])), len(set(bins))] == [1, 1, 2]


def test_few_values_are_counted_each_and_many_in_ranges():
    assert score_counts({"train": np.array([1.0, 2, 2])}) == {"train": {"1": 1, "2": 2}}
    counts = score_counts({"train": np.linspace(0, 10, 101), "test": np.array([0.0, 10.0])})
    assert list(counts["test"]) == ["0 to 2", "2 to 4", "4 to 6", "6 to 8", "8 to 10"]
    assert list(counts["test"].values()) == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("wrong", ["good", "nan", "inf", "1_000", "1;5"])
def test_what_is_not_a_number_is_reported_with_its_row(wrong, table):
    file, words = table
    with file.open("a") as stream:
        stream.write(f"film,{wrong}\n")
    with pytest.raises(UserError, match=rf"Row 501 of .* has the label '{wrong}', which is not a number such as 3.5"):
        load_examples(load_config(*words).data, kind=TargetKind.scores)
    examples = load_examples(load_config(*words, "data.on_bad_rows=skip").data, kind=TargetKind.scores)
    assert sum(examples.split(name).num_rows for name in NAMES) == 500


def test_classes_and_a_single_score_are_refused(table):
    file, words = table
    with pytest.raises(UserError, match=r"data.labels=\['a', 'b'\] makes classes .* set data.labels=null"):
        load_examples(load_config(*words[:-1], "data.labels=[a,b]").data, kind=TargetKind.scores)
    file.write_text("text,label\n" + "".join(f"film {number},3\n" for number in range(40)))
    with pytest.raises(UserError, match=r"has one score in its train split"):
        load_examples(load_config(*words).data, kind=TargetKind.scores)


@pytest.mark.parametrize("scores", [np.linspace(100, 101, 50), np.array([1000001.0, 1000002]), np.linspace(0, 1e-9, 7)])
def test_scores_that_are_close_together_are_all_counted(scores):
    assert sum(score_counts({"train": scores})["train"].values()) == len(scores)
