"""Charts draw what the arrays hold, wherever they are used."""

import numpy as np
from matplotlib.figure import Figure

from sentexp.plots.charts import Reliability, draw_confusion, draw_reliability


def test_cells_hold_counts_and_shares_until_there_are_too_many():
    shown = {}
    for classes in (2, 8, 25):
        axes = Figure().subplots()
        draw_confusion(axes, np.eye(classes, dtype=int) * 1500, [f"$label {n}" for n in range(classes)])
        shown[classes] = [text.get_text() for text in axes.texts]
        assert axes.get_xticklabels()[0].get_text() == r"\$label 0"
    assert shown[2] == ["1,500\n100%", "0\n0%", "0\n0%", "1,500\n100%"]
    assert shown[8][0] == "100%"
    assert shown[25] == []


def test_every_curve_has_its_line_and_its_rows():
    top, bottom = Figure().subplots(2, 1)
    bins = np.array([0.6, 0.9]), np.array([0.5, 0.95]), np.array([10, 30])
    curve = Reliability(confidence=bins[0], accuracy=bins[1], rows=bins[2], low=bins[1] - 0.1, high=bins[1] + 0.04)
    plain = Reliability(confidence=bins[0], accuracy=bins[1], rows=bins[2])
    draw_reliability(top, bottom, {"with ends": curve, "plain": plain}, least=0.5)
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["with ends", "plain"]
    assert [line.get_ydata().tolist() for line in bottom.get_lines()] == [[10, 30], [10, 30]]
    assert top.get_lines()[0].get_xdata().tolist() == [0.5, 1]


def test_a_curve_without_a_name_has_no_legend():
    top, bottom = Figure().subplots(2, 1)
    one = np.array([1.0])
    draw_reliability(top, bottom, {"": Reliability(confidence=one, accuracy=one, rows=one)})
    assert top.get_legend() is None
