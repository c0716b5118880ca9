"""What has gone wrong is said in a line with what to try, and a good result is not commented on."""

import pytest

from sentexp.config import load_config
from sentexp.run import symptoms as symptoms_module
from sentexp.run.symptoms import symptoms

THREE = ["negative", "neutral", "positive"]


@pytest.fixture(scope="module")
def noted():
    return lambda confusion, *words: symptoms(THREE[: len(confusion)], confusion, load_config(*words))


def test_a_good_result_is_not_commented_on(noted):
    assert noted([[8, 2], [1, 9]]) == []
    assert noted([[4, 1, 0], [1, 3, 1], [0, 1, 4]]) == []


def test_one_answer_to_every_row_is_told_once(noted):
    (sentence,) = noted([[10, 0], [10, 0]], "optim.lr=1e-3")
    assert sentence.startswith(
        "Every test row is called negative, so nothing was learned: try optim.lr=0.0002 where the"
    )
    first, second = noted([[4, 0], [16, 0]])
    assert first.startswith("Every test row is called negative")
    assert second == "Accuracy 0.2000 is below 0.8000, which calling every test row neutral has: see above."


def test_the_audit_that_is_proposed_is_of_the_same_data(noted, monkeypatch):
    given = ["data=file", "data.path=own.csv", "peft.r=4"]
    monkeypatch.setattr(symptoms_module, "given_words", lambda **_: given)
    (sentence,) = noted([[10, 0], [10, 0]])
    assert sentence.endswith(" -m sentexp audit data=file data.path=own.csv.")


def test_less_than_the_commonest_class_is_reported(noted):
    (sentence,) = noted([[2, 3], [4, 11]], "optim.lr=1e-3")
    assert sentence.startswith(
        "Accuracy 0.6500 is below 0.7500, which calling every test row neutral has: try optim.lr="
    )
    assert noted([[1, 4], [0, 15]]) == []
    assert noted([[0, 5], [0, 15]])[0].startswith("Every test row is called neutral")


def test_a_label_that_is_never_answered_is_reported(noted):
    (sentence,) = noted([[9, 0, 1], [1, 0, 1], [0, 0, 9]])
    assert sentence == (
        "No test row is called neutral: try data.class_weights=balanced or data.sampling=balanced_labels, and more "
        "rows of it."
    )
    (sentence,) = noted([[9, 0, 1], [1, 0, 1], [0, 0, 9]], "data.class_weights=balanced")
    assert sentence == "No test row is called neutral: try more rows of it, or more trainer.max_epochs."


def test_a_label_without_test_rows_is_not_missed(noted):
    assert noted([[9, 0, 1], [0, 0, 0], [1, 0, 9]]) == []
    assert noted([[9, 0], [0, 0]]) == []


def test_an_untuned_model_is_not_asked_to_train_longer(noted):
    words = ("peft=none", "task=causal_lm")
    assert "untuned" in noted([[10, 0], [10, 0]], *words)[0]
    assert "task.calibration=batch" in noted([[9, 0, 1], [1, 0, 1], [0, 0, 9]], *words)[0]
    assert not any("optim.lr" in sentence for sentence in noted([[2, 3], [4, 11]], *words))


def test_a_run_prints_them(monkeypatch, train, capsys):
    monkeypatch.setattr(
        symptoms_module, "symptoms", lambda labels, confusion, _: [f"{labels} {sum(map(sum, confusion))}"]
    )
    train()
    assert "Note: ['negative', 'positive'] 8\n" in capsys.readouterr().out
