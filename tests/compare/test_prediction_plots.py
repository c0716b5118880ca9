"""Pictures of comparisons: they draw whatever the data hold, and what they show is right."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.learning_curve_plot import learning_curve_picture
from sentexp.compare.pareto import pareto_front
from sentexp.compare.prediction_plots import (
    confusion_picture,
    precision_recall_picture,
    reliability_picture,
    roc_picture,
)
from sentexp.compare.roc_pr_curves import GRID, band, on_resamples, precision_recall, roc
from sentexp.compare.settings import differing, lines_along, shared, swept
from sentexp.compare.sweep_plots import axis_picture, pareto_picture
from sentexp.plots.style import plain, to_svg

RANKS = (4, 8, 16, 32)


def texts(figure):
    """Return every text of a figure as it is drawn."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text().replace(r"\$", "$") for text in figure.findobj(Text) if text.get_visible()]


def shown(figure):
    """Return a figure as the tree of its SVG, which must be well-formed."""
    return ET.fromstring(to_svg(figure))


@pytest.fixture
def sweep(simulate):
    """Return a comparison of ranks and learning rates with costs, and with hostile names and labels."""
    words = [(rank, rate) for rank in RANKS for rate in ("1e-4", "1e-3")]
    made = simulate([(f"r={rank} lr={rate} $x$ <script>", 0.5 + rank / 20, 1) for rank, rate in words])
    made.labels = ["$bad$", "<script>alert(1)</script>"]
    for place, (one, (rank, rate)) in enumerate(zip(made.configurations, words, strict=True)):
        for run in one.runs:
            run.settings = {"peft.r": str(rank), "peft.lora_alpha": str(2 * rank), "optim.lr": rate, "data.name": "x"}
            run.metrics = {"train/seconds": 100 - place, "parameters/trainable": 1000 * rank, "peak_memory_gib": 1.5}
    return made


@pytest.fixture
def board(sweep):
    return leaderboard(sweep, resamples=200)


@pytest.fixture
def growing(simulate):
    """Return a comparison along the training rows."""
    made = simulate([(f"rows={n}", 1.6 - 9 / np.sqrt(n), 1) for n in (100, 300, 1000, 3000, 10_000)], rows=1500)
    for one in made.configurations:
        one.runs[0].settings = {"data.train_subset": f"{one.name.partition('=')[2]}.0"}
    return made


@pytest.mark.parametrize("draw", [roc_picture, precision_recall_picture, reliability_picture, confusion_picture])
def test_what_was_said_is_drawn_of_the_four_best(draw, sweep, board):
    figure = draw(board, sweep)
    best = board.table["configuration"].iloc[:4].tolist()
    titles = [axes.get_title().replace(r"\$", "$") for axes in figure.axes if axes.get_title()]
    assert titles == best
    assert shown(figure).tag.endswith("svg")


@pytest.mark.parametrize("draw", [axis_picture, pareto_picture])
def test_a_sweep_is_drawn(draw, board):
    assert shown(draw(board)).tag.endswith("svg")


def test_dollars_are_letters_and_long_names_are_cut(board, sweep):
    assert any("$bad$" in text for text in texts(confusion_picture(board, sweep)))
    assert plain("a$b$") == r"a\$b\$"
    assert plain("one\ntwo\x00three") == "one two three"
    assert plain("_hidden") == " _hidden"
    assert len(plain("x" * 500)) == 35


def test_letters_without_a_glyph_do_not_stop_a_picture(sweep):
    sweep.labels = ["负面", "正面"]
    assert shown(confusion_picture(leaderboard(sweep, resamples=100), sweep)).tag.endswith("svg")


def test_a_picture_is_the_same_twice(board):
    assert to_svg(axis_picture(board)) == to_svg(axis_picture(board))


def test_the_metric_is_drawn_along_each_setting_of_its_own(board):
    figure = axis_picture(board)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["optim.lr", "peft.r"]  # lora_alpha only ever changes with r
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["r=4", "r=8", "r=16", "r=32"]
    drawn = [line.get_ydata() for line in figure.axes[1].get_lines() if len(line.get_ydata()) == 4]
    values = board.table.set_index("configuration")["accuracy"]
    expected = [values[f"r={rank} lr=1e-4 $x$ <script>"] for rank in RANKS]
    assert any(np.allclose(ys, expected) for ys in drawn)


def test_nothing_is_drawn_where_nothing_is_said(simulate):
    made = simulate([("r=4", 1.0, 1), ("r=8", 1.2, 1)])
    few = leaderboard(made, resamples=100)
    draws = (axis_picture, pareto_picture, learning_curve_picture)
    assert [draw(few) for draw in draws] == [None] * 3
    words = leaderboard(simulate([(f"peft={name}", 1.0, 1) for name in ("lora", "full", "head")]), resamples=100)
    assert [draw(words) for draw in draws] == [None] * 3


def test_metrics_of_which_less_is_better_are_drawn(sweep, growing):
    by_loss = leaderboard(sweep, metric="loss", resamples=100)
    assert pareto_picture(by_loss).axes[0].get_ylabel() == "loss"
    curve = learning_curve_picture(leaderboard(growing, metric="loss", resamples=100))
    assert curve.axes[0].get_ylabel() == "error: 1 - accuracy"


def test_the_front_holds_what_nothing_beats():
    costs, values = np.array([1, 2, 3, 4, 2, 4]), np.array([0.5, 0.7, 0.7, 0.9, 0.6, 0.9])
    assert pareto_front(costs, values).tolist() == [True, True, False, True, False, True]
    assert pareto_front(costs, -values, higher=False).tolist() == [True, True, False, True, False, True]


def test_the_members_of_the_front_are_named(sweep, board):
    seconds, accuracy = board.table["seconds"].to_numpy(), board.table["accuracy"].to_numpy()
    beaten = [
        any((seconds <= s) & (accuracy >= a) & ((seconds < s) | (accuracy > a)))
        for s, a in zip(seconds, accuracy, strict=True)
    ]
    figure = pareto_picture(board)
    assert len(figure.axes) == 2  # all runs took the same memory
    filled = next(line for line in figure.axes[0].get_lines() if line.get_label() == "not beaten")
    assert sorted(filled.get_xdata()) == sorted(seconds[~np.array(beaten)])
    assert names_below(figure) == [
        f"{letter}: {name}".replace("$", r"\$")
        for letter, name in zip("ABCDEFGH", board.table["configuration"], strict=False)
    ]
    letters = {text.get_text(): text.get_weight() == "bold" for text in figure.axes[0].texts}
    assert letters == {letter: not lost for letter, lost in zip("ABCDEFGH", beaten, strict=False)}
    (bars,) = figure.axes[0].collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert np.array_equal(ends, board.table[["accuracy_low", "accuracy_high"]].to_numpy())


def names_below(figure):
    """Return what is written below a picture of costs."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("others", [1, 13])
def test_many_configurations_are_points_at_their_values(others, simulate):
    made = simulate([(f"r={rank} lr={n}", 1.0, 1) for rank in range(1, 121 // others) for n in range(others)], rows=50)
    for place, one in enumerate(made.configurations):
        one.runs[0].settings = {"peft.r": str(1 + place // others), "optim.lr": str(1 + place % others)}
    figure = axis_picture(leaderboard(made, resamples=100))
    for panel in figure.axes:
        points, *medians = panel.get_lines()
        assert len(points.get_xdata()) == len(made.configurations)
        assert set(points.get_xdata()) == set(range(1, 1 + len(set(points.get_xdata()))))
        assert len(medians) == (others > 1)
        assert not panel.containers, "bars lie over each other"


def test_of_a_large_front_the_best_are_named(simulate):
    made = simulate([(f"r={n}", 0.05 * n, 1) for n in range(40)], rows=3000)
    board = leaderboard(made, resamples=100)
    board.table["seconds"] = board.table["accuracy"].rank()  # what is better costs more: nothing is beaten
    named = names_below(pareto_picture(board))
    assert len(named) == 9
    assert named[0] == f"A: {board.table['configuration'][0]}"
    assert named[-1].endswith("more are not beaten")


def test_the_learning_curve_says_how_many_rows_it_takes(growing):
    figure = learning_curve_picture(leaderboard(growing, resamples=200))
    (told,) = [text for text in texts(figure) if "takes about" in text]
    rows = int(re.match(r"0\.90 takes about ([\d,]+) rows \[", told).group(1).replace(",", ""))
    assert 1000 < rows < 20_000
    figure = learning_curve_picture(leaderboard(growing, resamples=200), target=0.98)
    assert any("0.98 is not within reach: the fitted limit is 0.9" in text for text in texts(figure))


@pytest.mark.parametrize("values", [["0.1", "0.2", "0.5", "None", "0.9"], ["100", "None", "None", "200", "100"]])
def test_shares_of_unknown_rows_and_two_sizes_have_no_curve(growing, values):
    for one, value in zip(growing.configurations, values, strict=True):
        one.runs[0].settings = {"data.train_subset": value}
    assert learning_curve_picture(leaderboard(growing, resamples=100)) is None


@pytest.mark.parametrize("curve", [roc, precision_recall])
def test_resampled_curves_are_those_of_scikit_learn(curve):
    chance = np.random.default_rng(0)
    positive, scores = chance.random(300) < 0.3, np.round(chance.random(300), 2)  # with ties
    drawn = np.stack([np.bincount(chance.integers(0, 300, 300), minlength=300) for _ in range(5)]).astype(np.float32)
    found = on_resamples(curve, positive, scores, drawn)
    for weight, ours in zip(drawn, found, strict=True):
        if curve is roc:
            false, true, _ = roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
            expected = np.interp(GRID, false, true)
        else:
            precision, recall, _ = precision_recall_curve(positive, scores, sample_weight=weight)
            expected = [precision[:-1][recall[:-1] >= max(at, 1e-9)][-1] for at in GRID]
        assert ours == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("curve", [roc, precision_recall])
def test_bands_contain_the_line_and_shrink_with_rows(simulate, curve):
    widths = []
    for rows in (200, 3200):
        made = simulate([("a", 1.0, 2)], rows=rows)
        found = band(curve, made.targets, [run.probabilities for run in made.configurations[0].runs])
        inside = (found.low <= found.line + 1e-9) & (found.line <= found.high + 1e-9)
        assert inside.mean() > 0.97
        widths.append(float((found.high - found.low).mean()))
    assert widths[1] < 0.5 * widths[0]


def test_a_label_that_a_resample_lacks_enters_no_mean():
    chance = np.random.default_rng(0)
    targets = np.r_[0, chance.integers(1, 3, 99)]  # one row of the first of three labels, none of a fourth
    probabilities = chance.dirichlet(np.ones(4), 100).astype(np.float32)
    for curve in (roc, precision_recall):
        found = band(curve, targets, [probabilities], resamples=50)
        assert np.isfinite(np.stack(found)).all()


def test_seeds_are_added_up_in_the_confusion_matrix(simulate):
    made = simulate([("a", 1.0, 3), ("b", 0.5, 3)], rows=200)
    figure = confusion_picture(leaderboard(made, resamples=100), made)
    counts = [int(text.partition("\n")[0].replace(",", "")) for text in texts(figure) if text.endswith("%")]
    assert sum(counts) == 2 * 3 * 200
    assert any("3 seeds" in text for text in texts(figure))


def test_settings_are_told_apart_and_shared(sweep):
    settings = [one.runs[0].settings for one in sweep.configurations]
    assert list(differing(settings)) == ["optim.lr", "peft.lora_alpha", "peft.r"]
    assert shared(settings) == {"data.name": "x"}
    assert shared([]) == {}
    axes = swept(sweep.configurations)
    assert [axis.key for axis in axes] == ["optim.lr", "peft.r"]
    assert [axis.key for axis in swept(sweep.configurations, "peft.lora_alpha")] == ["optim.lr", "peft.lora_alpha"]
    assert lines_along(axes[1], axes) == [("lr=1e-4", [0, 2, 4, 6]), ("lr=1e-3", [1, 3, 5, 7])]


def test_a_setting_that_some_lack_is_drawn_of_the_others(simulate):
    made = simulate([("a", 1.0, 1), ("b", 1.1, 1), ("c", 1.2, 1), ("full", 1.3, 1)])
    kinds = [{"peft": "lora", "peft.r": "4"}, {"peft": "lora", "peft.r": "8"}, {"peft": "lora", "peft.r": "16"}]
    for one, settings in zip(made.configurations, [*kinds, {"peft": "full"}], strict=True):
        one.runs[0].settings = settings
    board = leaderboard(made, resamples=100)
    (panel,) = axis_picture(board).axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["4", "8", "16"]
