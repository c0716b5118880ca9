"""Metrics of slices, and where a run loses most."""

import numpy as np
import pytest

from sentexp.compare.slices import slice_table, worst_slices
from sentexp.errors import UserError


def test_each_slice_has_the_metric_of_its_rows(simulate):
    comparison = simulate((("r=1", 1.0, 1), ("r=2", 2.0, 1)))
    table = slice_table(comparison, resamples=300)
    codes, values = comparison.slices["length"]
    assert len(table) == 4
    for _, row in table.iterrows():
        mask = codes == values.index(row["value"])
        said = {one.name: one.runs[0].probabilities for one in comparison.configurations}[row["configuration"]]
        right = said.argmax(1) == comparison.targets
        assert row["rows"] == mask.sum()
        assert row["accuracy"] == pytest.approx(right[mask].mean())
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["lost"] == pytest.approx((right.mean() - right[mask].mean()) * mask.sum())


def test_the_slice_where_a_run_loses_most(simulate):
    comparison = simulate((("r=1", 1.0, 1), ("r=2", 2.0, 1)))
    codes, _ = comparison.slices["length"]
    bad = comparison.configurations[1].runs[0].probabilities
    bad[codes == 1] = bad[codes == 1][:, ::-1]  # wrong on one slice
    worst = worst_slices(slice_table(comparison, resamples=100))
    assert worst.set_index("configuration").loc["r=2", "value"] == comparison.slices["length"][1][1]


def test_a_small_slice_has_no_interval(simulate):
    comparison = simulate((("r=1", 1.0, 1),))
    comparison.slices["language"] = (np.r_[np.zeros(389, int), np.ones(10, int), 2], ["en", "de", "fr"])
    table = slice_table(comparison, by="language", resamples=100)
    assert table["value"].tolist() == ["en", "de", "fr"]
    assert table["accuracy_low"].isna().tolist() == [False, True, True]


def test_an_unknown_slice_is_refused(simulate):
    with pytest.raises(UserError, match="by=colour is not a slice of these rows: it must be one of length"):
        slice_table(simulate((("r=1", 1.0, 1),)), by="colour")
