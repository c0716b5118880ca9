"""Labels in several spellings: what is probably one class is proposed, as a line that works, and never done."""

import json
import re
import shlex

import pytest

from sentexp.config import load_config
from sentexp.data.label_spellings import proposal, proposed_classes
from sentexp.data.sources import load_source
from sentexp.errors import UserError


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["neg", "negative", "pos"], ["negative", "negative", "positive"]),
        (["Neg.", "NEGATIVE", "positive", "POS"], ["negative", "negative", "positive", "positive"]),
        (["very good", "very_good", "Very-Good", "bad"], ["very good", "very good", "very good", "bad"]),
        (["0", "1", "negative", "positive"], ["negative", "positive"] * 2),
        (["0", "2", "neg", "neutral", "pos"], ["negative", "positive", "negative", "neutral", "positive"]),
        (["-1", "0", "1", "neg", "neu", "pos"], ["negative", "neutral", "positive"] * 2),
        (["0", "neg", "pos"], ["negative", "negative", "positive"]),
        (["\uff47ood", "good", "bad"], ["\uff47ood", "\uff47ood", "bad"]),
    ],
)
def test_spellings_of_one_class_are_proposed(labels, classes):
    assert proposed_classes(labels) == dict(zip(labels, classes, strict=True))


@pytest.mark.parametrize(
    "labels",
    [
        ["negative", "positive"],
        ["-1", "0", "1"],
        ["1", "2", "3", "4", "5"],
        ["bad", "good", "0", "1"],  # which is which, nobody knows
        ["7", "negative", "positive"],
        ["neg", "pos", "mixed", "0"],
        ["+", "-"],
        ["1.5", "15"],
    ],
)
def test_classes_of_their_own_are_left_alone(labels):
    assert proposed_classes(labels) == {}
    assert proposal(labels) == []


def table(folder, labels):
    rows = [json.dumps({"text": f"text {number}", "label": label}) for number, label in enumerate(labels)]
    (folder / "x.jsonl").write_text("\n".join(rows) + "\n")
    return lambda *overrides: load_source(load_config("data=csv", f"data.path={folder / 'x.jsonl'}", *overrides).data)


def test_the_line_is_pasted_as_it_stands(tmp_path):
    read = table(tmp_path, ["neg", "Negative", "negative ", "pos", "1", "0"])
    found = read()
    assert found.labels == ["0", "1", "neg", "Negative", "pos"]  # nothing is mapped
    (note,) = found.notes[1:]
    assert note.startswith("Labels that are probably one class: 0 and neg and Negative; 1 and pos.")
    (word,) = shlex.split(re.search(r'unless you paste (".*")\.', note)[1])
    pasted = read(word)
    assert (pasted.labels, pasted.notes) == (["negative", "positive"], [])
    assert pasted.splits["train"].column("label").to_pylist() == [0, 0, 0, 1, 1, 0]


def test_letters_that_no_command_line_takes_are_proposed_for_a_file(tmp_path):
    (note,) = table(tmp_path, ["très bon", "très_bon", "mal"])().notes
    mapping = re.search(r"labels: (\{.*\}) into a file of your own", note)[1]
    assert json.loads(mapping) == {"mal": "mal", "très bon": "très bon", "très_bon": "très bon"}


def test_what_is_configured_needs_no_proposal(tmp_path):
    read = table(tmp_path, ["neg", "negative"])
    with pytest.raises(UserError, match="has the label 'neg', which is none of"):
        read("data.labels=[negative,positive]")
