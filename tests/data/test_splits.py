"""Splits by hash, stratified nested subsets."""

from collections import Counter

import pytest
from datasets import Dataset

from sentexp.config import load_config
from sentexp.data.splits import NAMES, carve, hash01, load_examples, normalise, subset
from sentexp.errors import UserError
from sentexp.experiment import prepare


def test_duplicates_never_straddle_a_split():
    forms = ("Film number {} is  good", "film number {} IS good")
    texts = [forms[index // 300 % 2].format(index % 300) for index in range(1200)]
    parts = carve(Dataset.from_dict({"text": texts, "label": [0] * 1200}), {"validation": 0.2, "test": 0.2})
    seen = {name: {normalise(text) for text in part["text"]} for name, part in parts.items()}
    assert sum(len(part) for part in parts.values()) == 1200
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert 0.1 < len(parts["test"]) / 1200 < 0.3


def test_the_split_is_the_same_on_every_machine():
    # A value written down once: a change of hash, salt or normalisation would move published test rows.
    assert hash01(normalise("A  warm and FUNNY film"), "split") == pytest.approx(0.8900693500369424, abs=1e-15)


def test_normalise_folds_case_width_and_space():
    assert normalise(" Ｆｕｌｌ  width\tSTRASSE ") == normalise("full WIDTH straße")


def test_subsets_are_stratified_and_nested():
    labels = [0] * 300 + [1] * 100
    texts = [f"text {index}" for index in range(400)]
    small = subset(texts, labels, 40, 0, "data.train_subset")
    large = subset(texts, labels, 0.5, 0, "data.train_subset")
    assert Counter(labels[row] for row in small) == {0: 30, 1: 10}
    assert len(large) == 200
    assert set(small) <= set(large)
    assert set(small) != set(subset(texts, labels, 40, 1, "data.train_subset"))


def test_a_subset_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"data.train_subset=9 asks for 9 of 3 rows"):
        subset(["a", "b", "c"], [0, 1, 0], 9, 0, "data.train_subset")


def test_the_embedded_data_are_carved_once_and_for_all():
    examples = load_examples(load_config("data.train_subset=null", "data.validation_subset=null").data)
    counts = {name: len(getattr(examples, name)) for name in NAMES}
    assert sum(counts.values()) == 8530
    train = {normalise(text) for text in examples.train["text"]}
    assert not train & {normalise(text) for text in examples.test["text"]}
    assert not train & {normalise(text) for text in examples.validation["text"]}


def test_the_public_validation_split_of_sst2_is_the_test_split(shared):
    examples = load_examples(load_config("data=sst2", f"data.path={shared / 'sst2'}").data)
    assert len(examples.test) == 872
    assert examples.counts()["test"] == {"negative": 428, "positive": 444}
    assert len(examples.train) + len(examples.validation) == 67_349


def test_test_texts_in_the_training_split_are_counted_and_told(config, tmp_path, capsys):
    for name, texts in {"train": ("A film", "b", "c"), "validation": ("d",), "test": ("a  FILM", "e")}.items():
        rows = "".join(f"{text},{index % 2}\n" for index, text in enumerate(texts))
        (tmp_path / f"{name}.csv").write_text("sentence,label\n" + rows)
    prepare(config(f"data.path={tmp_path}"))
    assert "Warning: 1 test texts also stand in the training split" in capsys.readouterr().out


def test_one_class_is_refused(config, tmp_path):
    (tmp_path / "one.csv").write_text("sentence,label\n" + "\n".join(f"text {index},1" for index in range(100)))
    with pytest.raises(UserError, match="one class in its train split, positive"):
        load_examples(
            config(f"data.path={tmp_path / 'one.csv'}", "data.splits.validation=null", "data.splits.test=null").data
        )
