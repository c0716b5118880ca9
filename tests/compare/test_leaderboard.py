"""The leaderboard: ranks, intervals, differences, corrections, notes."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.rows_and_seeds import detectable, half_width
from sentexp.compare.significance import mcnemar
from sentexp.compare.slices import slice_table
from sentexp.config.metric_names import METRICS
from sentexp.errors import UserError

PLAIN = (("r=1", 0.2, 1), ("r=2", 1.5, 1), ("r=3", 1.5, 1))
BASELINES = (("majority class", "majority", 0.0), ("untuned base", "untuned", 0.4))


def test_clear_differences_rank_and_unclear_ones_tie(simulate):
    board = leaderboard(simulate(PLAIN), resamples=500)
    assert board.table["rank"].tolist() == [1, 1, 2]
    assert set(board.table["configuration"][:2]) == {"r=2", "r=3"}
    assert board.table["configuration"][2] == "r=1"
    assert (
        "On these 400 test rows the first 2 of 3 configurations do not differ significantly in accuracy"
        in board.notes[0]
    )
    assert any("rows to settle the first two" in note or "same value" in note for note in board.notes)
    assert "one seed" in board.notes[-1]


def test_the_variance_of_seeds_is_computed_once_however_many_configurations(simulate, monkeypatch):
    counts, variance = [], np.var
    for configurations in (10, 20):
        made = simulate([(f"r={n}", 1.0, 1) for n in range(configurations)], rows=60)
        counting = Mock(wraps=variance)
        with monkeypatch.context() as patch:
            patch.setattr(np, "var", counting)
            leaderboard(made, resamples=100)
        counts.append(counting.call_count)
    assert counts[1] <= 2 * counts[0]


def test_a_note_names_the_first_of_many_that_tie(simulate):
    board = leaderboard(simulate([("r=0", -1.0, 1), *((f"r={n}", 1.5, 1) for n in range(1, 25))]), resamples=100)
    tied = board.table[board.table["rank"] == 1]["configuration"].tolist()
    assert len(tied) > 10
    assert f"{', '.join(tied[:10])} and {len(tied) - 10} more. Two such" in board.notes[0]


def test_a_difference_that_only_an_uncorrected_test_finds_shares_its_rank(simulate):
    board = leaderboard(simulate([(f"r={n}", skill, 1) for n, skill in enumerate((1.5, 1.2, 1.2, 1.2, 1.2))]))
    raw, corrected = board.table["to_best_p"][1:], board.table["to_best_p_holm"][1:]
    assert ((raw < 0.05) & (corrected > 0.05)).any()
    assert board.table["rank"].tolist() == [1, *(1 if p > 0.05 else 2 for p in corrected)]


def test_every_metric_lies_in_its_interval(simulate):
    table = leaderboard(simulate(PLAIN), resamples=500).table
    for name in METRICS:
        low, value, high = (table[name + suffix] for suffix in ("_low", "", "_high"))
        assert (low < high).all()
        if name != "ece":  # resamples have a larger calibration error than the rows, which the correction follows
            assert ((low <= value) & (value <= high)).all(), name


def test_differences_are_paired_and_their_p_values_mcnemars(simulate):
    comparison = simulate(PLAIN, baselines=BASELINES)
    board = leaderboard(comparison, resamples=500)
    right = np.stack([one.runs[0].probabilities.argmax(1) == comparison.targets for one in comparison.everything()])
    raw = mcnemar(right)
    names = [one.name for one in comparison.everything()]
    best = names.index(board.table["configuration"][0])
    for _, row in board.table[:3].iterrows():
        number = names.index(row["configuration"])
        assert row["to_best_p"] == pytest.approx(raw[number, best])
        assert row["to_base_p"] == pytest.approx(raw[number, names.index("untuned base")])
        assert row["to_best"] == pytest.approx(row["accuracy"] - board.table["accuracy"][0])
        assert row["to_best_p"] <= row["to_best_p_bh"] <= row["to_best_p_holm"]
    for suffix, method in (("holm", "holm"), ("bh", "fdr_bh")):
        corrected = multipletests(board.table["to_base_p"][:3], method=method)[1]
        assert board.table[f"to_base_p_{suffix}"][:3].tolist() == pytest.approx(corrected.tolist(), rel=1e-9, abs=0)
    assert board.base == "untuned base"


def test_baselines_have_no_rank_and_stand_below(simulate):
    board = leaderboard(simulate(PLAIN, baselines=BASELINES), resamples=200)
    assert board.table["rank"].isna().tolist() == [False] * 3 + [True] * 2
    assert board.table["configuration"].tolist()[3:] == ["majority class", "untuned base"]


@pytest.mark.parametrize("wanted", ["majority", "majority class", "r=1", "r=1-1"])
def test_the_base_can_be_named(simulate, wanted):
    board = leaderboard(simulate(PLAIN, baselines=BASELINES), resamples=200, base=wanted)
    assert board.base == {"majority": "majority class", "r=1-1": "r=1"}.get(wanted, wanted)


def test_an_unknown_base_is_refused(simulate):
    with pytest.raises(UserError, match="base=llama is not among what is compared: it must be one of r=1, r=2"):
        leaderboard(simulate(PLAIN), resamples=200, base="llama")


def test_the_untuned_run_is_the_base(simulate):
    comparison = simulate(PLAIN, baselines=BASELINES)
    comparison.configurations[0].runs[0].settings["peft"] = "none"
    assert leaderboard(comparison, resamples=200).base == "r=1"


def test_lower_is_better_for_losses(simulate):
    board = leaderboard(simulate(PLAIN), metric="loss", resamples=500)
    assert board.table["configuration"].tolist()[-1] == "r=1"
    assert (board.table["to_best"] >= 0).all()


def test_seeds_make_intervals_wider_and_are_reported(simulate):
    comparison = simulate((("r=1", 1.0, 3), ("r=2", 1.05, 3)), spread=0.1)
    board = leaderboard(comparison, resamples=500)
    assert board.table["seeds"].tolist() == [3, 3]
    means = {
        one.name: np.mean([(run.probabilities.argmax(1) == comparison.targets).mean() for run in one.runs])
        for one in comparison.configurations
    }
    for _, row in board.table.iterrows():
        assert row["accuracy"] == pytest.approx(means[row["configuration"]])
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert not any("one seed" in note for note in board.notes)
    best = board.table.iloc[0]
    assert best["to_best"] == 0
    assert np.isnan(best["to_best_low"])
    assert board.evidence.seed_freedom == 4
    rows_only = float(np.nanstd(board.evidence.replicates["accuracy"][0])) * 1.96
    number = board.evidence.configurations.index(comparison.configurations[0])
    assert board.evidence.interval(number, "accuracy").high - board.evidence.value(number, "accuracy") > rows_only


def test_a_single_seed_among_several_has_their_noise_in_its_interval(simulate):
    comparison = simulate((("r=1", 1.0, 3), ("r=2", 1.05, 1)), baselines=[("untuned", "untuned", 0.5)], spread=0.1)
    alone = simulate((("r=2", 1.05, 1),))
    alone.targets = comparison.targets
    alone.configurations, alone.baselines = [comparison.configurations[1]], comparison.baselines
    among, single = (leaderboard(one, resamples=2000).evidence for one in (comparison, alone))
    wide, narrow = among.interval(1, "loss"), single.interval(0, "loss")
    assert wide.high - wide.low > narrow.high - narrow.low
    by_rows = np.nanvar(among.replicates["loss"][1]) - among.between_seeds["loss"]
    by_seeds = np.var(among.values[0]["loss"], ddof=1)
    assert wide.high - wide.value == pytest.approx(half_width(float(by_rows), float(by_seeds), 2, 0.95))
    assert among.interval(2, "loss") == pytest.approx(single.interval(1, "loss"))  # an untuned model has no seed


def test_what_the_rows_do_to_each_seed_counts_once(simulate):
    evidence = leaderboard(simulate((("r=1", 1.0, 8), ("r=2", 1.0, 8)), rows=2000), "loss", resamples=1000).evidence
    gaps = evidence.replicates["loss"][0] - evidence.replicates["loss"][1]
    by_rows, between = np.var(gaps), np.array([one["loss"].var(ddof=1) for one in evidence.values]).mean()
    assert between == pytest.approx(evidence.between_seeds["loss"], rel=0.8)  # seeds differ by the rows alone
    assert by_rows == pytest.approx(2 / 8 * evidence.between_seeds["loss"], rel=0.5)
    expected = half_width(max(0.0, by_rows - evidence.between_seeds["loss"] / 4), between / 4, 14, 0.95)
    interval = evidence.difference(0, 1, "loss")
    assert interval.high - interval.value == pytest.approx(expected)
    assert (interval.high - interval.low) / 2 < 0.85 * half_width(by_rows, between / 4, 14, 0.95)


def test_few_seeds_show_large_differences_only(simulate):
    evidence = leaderboard(simulate((("r=1", 1.0, 2), ("r=2", 1.1, 2)), spread=0.2), resamples=300).evidence
    gaps = evidence.replicates["loss"][0] - evidence.replicates["loss"][1]
    apart, by_seeds = evidence.between_seeds["loss"], evidence.seed_variance["loss"]
    by_rows = max(0.0, float(np.var(gaps)) - apart)
    assert evidence.detectable(0, 1, "loss") == pytest.approx(detectable(by_rows, by_seeds, 2))
    assert evidence.detectable(0, 1, "loss") > 2 * math.sqrt(by_rows + by_seeds) * (1.96 + 0.84)
    assert evidence.detectable(0, 1, "loss", 4) == pytest.approx(
        detectable(by_rows / 4, by_seeds - 0.75 * min(apart, by_seeds), 2)
    )


def test_as_many_rows_as_stated_show_the_difference_that_was_found(simulate):
    evidence = leaderboard(simulate((("r=1", 1.0, 3), ("r=2", 1.03, 3)), spread=0.01), "loss", resamples=300).evidence
    gap = abs(evidence.value(0, "loss") - evidence.value(1, "loss"))
    evidence.seed_variance["loss"] = evidence.between_seeds["loss"]  # what seeds do on any rows alike is nothing
    times = evidence.rows_to_settle(0, 1, "loss") / 400
    assert evidence.detectable(0, 1, "loss", times) == pytest.approx(gap, rel=0.01)
    evidence.seed_variance["loss"] *= 1e4
    assert evidence.rows_to_settle(0, 1, "loss") == math.inf


def test_more_rows_tell_smaller_differences_apart(simulate):
    few, many = (
        leaderboard(simulate((("r=1", 1.0, 1), ("r=2", 1.3, 1)), rows=rows), resamples=300) for rows in (100, 6400)
    )
    assert many.evidence.detectable(0, 1, "accuracy") == pytest.approx(
        few.evidence.detectable(0, 1, "accuracy") / 8, rel=0.4
    )
    assert many.table["rank"].tolist() == [1, 2]
    assert many.evidence.rows_to_settle(0, 1, "accuracy") < 6400


def test_costs_and_answers_are_means_over_seeds(simulate):
    comparison = simulate((("r=1", 1.0, 2),))
    for seconds, run in zip((10.0, 20.0), comparison.configurations[0].runs, strict=True):
        run.metrics |= {"train/seconds": seconds, "test/irregular_outputs": seconds / 10}
    (row,) = leaderboard(comparison, resamples=200).table.to_dict("records")
    assert row["seconds"] == 15
    assert row["irregular_outputs"] == 1.5
    assert row["trainable_parameters"] == 1000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "speed"}, "metric=speed must be one of loss, accuracy"),
        ({"confidence": 95}, "confidence=95 must be above 0 and below 1"),
        ({"resamples": 0}, "resamples=0 must be at least 100"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(simulate, given, said):
    for measure in (leaderboard, slice_table):
        with pytest.raises(UserError, match=said):
            measure(simulate(PLAIN), **given)
