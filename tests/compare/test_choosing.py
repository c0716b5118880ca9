"""A setting chosen on validation: one configuration of each method is left, and what was chosen is said."""

import math
from dataclasses import replace

import pytest

from sentexp.compare.choosing import with_chosen
from sentexp.compare.leaderboard import leaderboard
from sentexp.config import CompareConfig, EvaluatedSplit, TrackingConfig, from_conf
from sentexp.errors import UserError

RATES = ("0.0001", "0.001", "0.01")


@pytest.fixture
def tuned(simulate):
    """Return a function from validation accuracies, by method and rate, to a comparison of three seeds of each."""

    def make(accuracies, seeds=3):
        names = [f"peft={method} lr={rate}" for method, of_rates in accuracies.items() for rate in of_rates]
        comparison = simulate([(name, 1.0, seeds) for name in names])
        for one in comparison.configurations:
            method, rate = (word.partition("=")[2] for word in one.name.split())
            for place, run in enumerate(one.runs):
                run.settings = {"peft": method, "optim.lr": rate}
                run.metrics["best/accuracy"] = accuracies[method][rate] + 0.01 * (place - 1)
        return comparison

    return make


def names(comparison):
    return [one.name for one in comparison.configurations]


def test_each_method_keeps_the_rate_that_is_best_on_validation(tuned):
    accuracies = {
        "lora": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True)),
        "vera": dict(zip(RATES, (0.5, 0.6, 0.7), strict=True)),
    }
    chosen = with_chosen(tuned(accuracies), "optim.lr", "accuracy")
    assert names(chosen) == ["peft=lora lr=0.001", "peft=vera lr=0.01"]
    assert chosen.notes == [
        "Of configurations that differ in optim.lr alone, the one with the best accuracy on the validation rows is "
        "kept: 2 of 6.",
        "The smallest or the largest optim.lr was the best for peft=vera lr=0.01: one beyond may be better.",
    ]
    assert leaderboard(chosen, resamples=100).notes[:2] == chosen.notes


def test_the_test_rows_choose_nothing(tuned):
    """The rate that is worst on validation is by far the best on the test rows."""
    comparison = tuned({"lora": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True))})
    best = comparison.configurations[2]
    best.runs = [replace(run, probabilities=comparison.targets[:, None] == [[0, 1]]) for run in best.runs]
    assert names(with_chosen(comparison, "optim.lr", "accuracy")) == ["peft=lora lr=0.001"]


def test_equal_rates_leave_the_smallest_and_incomplete_ones_are_not_chosen(tuned):
    tied = with_chosen(tuned({"lora": dict.fromkeys(reversed(RATES), 0.7)}), "optim.lr", "accuracy")
    assert not any("one beyond" in note for note in tied.notes)
    assert names(tied) == ["peft=lora lr=0.0001"]
    comparison = tuned({"lora": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True))})
    comparison.configurations[1].runs.pop()
    assert names(with_chosen(comparison, "optim.lr", "accuracy")) == ["peft=lora lr=0.0001"]


def test_less_loss_is_better_and_what_is_not_a_number_loses(tuned):
    comparison = tuned({"lora": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True))})
    for one, loss in zip(comparison.configurations, (0.4, 0.5, math.nan), strict=True):
        for run in one.runs:
            run.metrics["best/loss"] = loss
    assert names(with_chosen(comparison, "optim.lr", "loss")) == ["peft=lora lr=0.0001"]


def test_what_cannot_be_chosen_is_one_sentence(tuned):
    comparison = tuned({"lora": dict(zip(RATES, (0.7, 0.8, 0.6), strict=True)), "vera": {"0.1": 0.5}})
    with pytest.raises(
        UserError, match=r"choose=optim.lr_scale is not a setting .*: it must be one of optim.lr, peft\."
    ):
        with_chosen(comparison, "optim.lr_scale", "accuracy")
    with pytest.raises(UserError, match=r"needs f1_macro on validation, and peft=lora lr=0.0001 has none"):
        with_chosen(comparison, "optim.lr", "f1_macro")
    with pytest.raises(UserError, match=r"choose=optim\.lr chooses on the validation rows, which then flatter it"):
        from_conf(CompareConfig, tracking=from_conf(TrackingConfig), choose="optim.lr", split=EvaluatedSplit.validation)


def test_the_cheapest_of_the_first_rank_are_named(simulate):
    comparison = simulate([("peft=a", 1.0, 2), ("peft=b", 1.0, 2), ("peft=c", -1.0, 2)])
    for one, size, seconds in zip(comparison.configurations, (3.0, 0.25, 0.1), (20, 30, 1), strict=True):
        for run in one.runs:
            run.metrics |= {"saved_mib": size, "train/seconds": seconds}
    notes = leaderboard(comparison, resamples=200).notes
    assert "configurations do not differ significantly in accuracy: " in notes[0]
    assert (
        "Among those of the first rank: peft=b takes least on disk (0.25 MiB); peft=a trains fastest (20 s)." in notes
    )
