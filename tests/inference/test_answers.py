"""What a run gives for a text, as columns: by thresholds of their own where a text has any number of labels."""

from types import SimpleNamespace

import numpy as np

from sentexp.config import TargetKind
from sentexp.export.pyfunc import to_frame
from sentexp.inference.answers import answers, output_columns

LABELS = ["joy", "anger"]
PROBABILITIES = np.array([[0.9, 0.3], [0.6, 0.29], [0.2, 0.1]], np.float32)


def trained(kind, labels=LABELS, thresholds=None):
    """Return as much of a run as answers need."""
    return SimpleNamespace(kind=kind, labels=labels, thresholds=thresholds)


def test_a_set_has_the_labels_that_reach_their_thresholds():
    run = trained(TargetKind.label_sets, thresholds=[0.7, float(np.float32(0.3))])
    assert output_columns(run) == ["labels", "probability_joy", "probability_anger"]
    assert answers(run, PROBABILITIES) == [[["joy", "anger"]], [[]], [[]]]
    frame = to_frame(PROBABILITIES, run)
    assert frame["labels"].tolist() == [["joy", "anger"], [], []]
    assert frame["probability_anger"].dtype == np.float32
    np.testing.assert_array_equal(frame[["probability_joy", "probability_anger"]], PROBABILITIES)


def test_a_class_is_the_likeliest_one_and_a_score_is_itself():
    run = trained(TargetKind.classes)
    assert output_columns(run) == ["label", "probability_joy", "probability_anger"]
    assert answers(run, PROBABILITIES) == [["joy"], ["joy"], ["joy"]]
    score = trained(TargetKind.scores, ["score"])
    assert output_columns(score) == ["score"]
    assert answers(score, PROBABILITIES[:, :1]) == [[], [], []]
    np.testing.assert_array_equal(to_frame(PROBABILITIES[:, :1], score)["score"], PROBABILITIES[:, 0])
