"""Of which metrics more is better."""

import pytest

from sentexp.config.metric_names import is_better_higher


@pytest.mark.parametrize(
    ("metric", "higher"), [("loss", False), ("ece", False), ("brier", False), ("accuracy", True), ("auroc_macro", True)]
)
def test_errors_are_better_when_they_are_smaller(metric, higher):
    assert is_better_higher(metric) is higher
    assert is_better_higher(f"validation/{metric}") is higher
