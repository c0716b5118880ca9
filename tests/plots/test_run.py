"""Pictures are written and are pictures."""

import pytest

from sentexp.plots.run import draw_confusion_matrix, draw_labels, draw_learning_curve


@pytest.mark.draws
def test_pictures_are_written(tmp_path):
    draw_learning_curve([(1, 0.7), (2, 0.5)], [(2, 0.6)], [], tmp_path / "curve.png")
    draw_confusion_matrix([[5, 1], [0, 0]], ["negative", "positive"], tmp_path / "matrix.png")
    draw_labels({"joy": (0.8, 0.7, 0.75), "50 $ & more_": (0.5, 0.9, 0.64)}, tmp_path / "labels.png")
    for name in ("curve.png", "matrix.png", "labels.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
