"""Imbalance: weights of classes equal scikit-learn's, rows are drawn as often as they should."""

from collections import Counter

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from sentexp.config import load_config
from sentexp.data.batching import RowBatches
from sentexp.data.class_balance import class_weights, row_weights
from sentexp.data.splits import load_examples
from sentexp.errors import UserError


@pytest.fixture
def load(tmp_path):
    rows = [
        f"text {i},{'good' if i % 10 < 7 else 'bad' if i % 10 < 9 else 'so so'},{'nord' if i % 5 else 'süd'}"
        for i in range(200)
    ]
    (tmp_path / "x.csv").write_text("text,label,region\n" + "\n".join(rows) + "\n")

    def build(*overrides):
        data = load_config("data=csv", f"data.path={tmp_path / 'x.csv'}", "data.slices=region", *overrides).data
        return data, load_examples(data)

    return build


def test_no_weights_by_default(load):
    assert class_weights(*load()) is None
    assert row_weights(*load()) is None


def test_balanced_weights_are_those_of_scikit_learn(load):
    data, examples = load("data.class_weights=balanced")
    targets = examples.targets("train")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert class_weights(data, examples) == pytest.approx(expected.tolist())
    assert np.mean(np.array(class_weights(data, examples))[targets]) == pytest.approx(1)


def test_a_class_without_training_rows_weighs_nothing(load):
    data, examples = load("data.class_weights=balanced", "data.labels=[good,bad,so so,awful]")
    weights = class_weights(data, examples)
    assert weights is not None
    assert weights[3] == 0
    assert np.mean(np.array(weights)[examples.targets("train")]) == pytest.approx(1)


def test_a_list_of_weights_has_one_for_each_class(load):
    assert class_weights(*load("data.class_weights=[1,2,3]")) == [1, 2, 3]
    with pytest.raises(UserError, match=r"has 2 numbers for the 3 classes bad, good, so so: give one number for each"):
        class_weights(*load("data.class_weights=[1,2]"))


@pytest.mark.parametrize("sampling", ["balanced_labels", "balanced_slices"])
def test_balanced_sampling_draws_each_kind_equally_often(load, sampling):
    data, examples = load(f"data.sampling={sampling}")
    column = "label" if sampling == "balanced_labels" else "slice.region"
    kinds = examples.train.column(column).to_pylist()
    order = RowBatches([5] * len(kinds), 16, 1, 3, True, row_weights(data, examples))
    drawn: Counter[object] = Counter()
    for epoch in range(40):
        order.set_epoch(epoch)
        rows = [row for batch, _ in order for row in batch]
        assert len(rows) == len(kinds)
        drawn.update(kinds[row] for row in rows)
    shares = [count / sum(drawn.values()) for count in drawn.values()]
    assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=0.02)  # 4 standard errors of 6,400 draws
    order.set_epoch(0)
    assert list(order) == list(order)
