"""Data sets that `datasets` has saved: read as they were, and refused where they are not whole."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentexp.config import load_config
from sentexp.data.sources import load_source
from sentexp.data.tables import TextFormat, read_table
from sentexp.errors import UserError
from sentexp.inference.readers import open_source

WANTED = {"data.text": "text", "data.label": "label"}
CLASSES = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})


@pytest.fixture(autouse=True)
def quiet():
    disable_progress_bars()


def rows(**columns):
    return Dataset.from_dict({"text": ["fine", "dull", "so so"], "label": [1, 0, 1], **columns})


def own(path, *overrides):
    return load_source(load_config("data=csv", f"data.path={path}", *overrides).data)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_what_is_saved_comes_back(tmp_path, pairs):
    texts, labels = map(list, zip(*pairs, strict=True))
    Dataset.from_dict({"text": texts, "label": labels}).save_to_disk(tmp_path / "saved")
    table = read_table(tmp_path / "saved", WANTED, TextFormat()).columns
    assert table["text"].to_pylist() == texts
    assert table["label"].to_pylist() == labels


def test_one_data_set_in_several_files_is_one_table(tmp_path):
    rows(region=["north", "south", None]).save_to_disk(tmp_path / "saved", num_shards=2)
    found = own(tmp_path / "saved", "data.slices=region").splits
    assert set(found) == {"train"}
    assert found["train"].column("text").to_pylist() == ["fine", "dull", "so so"]
    assert found["train"].column("slice.region").to_pylist() == ["north", "south", None]
    with pytest.raises(UserError, match=r"is one saved data set, but data.splits.validation=dev"):
        own(tmp_path / "saved", "data.splits.validation=dev")


def test_a_selection_is_saved_as_its_rows(tmp_path):
    rows().select([1, 0]).save_to_disk(tmp_path / "saved")
    assert own(tmp_path / "saved").splits["train"].column("text").to_pylist() == ["dull", "fine"]


def test_the_splits_of_a_dictionary_are_found_by_their_names(tmp_path):
    parts = {
        name: Dataset.from_dict({"text": [f"{name} a", f"{name} b"], "label": [0, 1]}) for name in ("train", "test")
    }
    DatasetDict(parts | {"unsupervised": parts["train"]}).save_to_disk(tmp_path / "saved")
    found = own(tmp_path / "saved").splits
    assert {name: table.column("text").to_pylist() for name, table in found.items()} == {
        "train": ["train a", "train b"],
        "test": ["test a", "test b"],
    }
    assert own(tmp_path / "saved" / "test").splits["train"].column("text").to_pylist() == ["test a", "test b"]
    with pytest.raises(UserError, match=r"no file for the split 'dev' \(found: test, train, unsupervised\)"):
        own(tmp_path / "saved", "data.splits.validation=dev")


def test_classes_are_read_by_name_or_in_the_order_of_the_configuration(tmp_path):
    Dataset.from_dict({"text": ["fine", "dull"], "label": [1, 0]}, features=CLASSES).save_to_disk(tmp_path / "saved")
    assert own(tmp_path / "saved").labels == ["neg", "pos"]
    named = own(tmp_path / "saved", "data.labels=[negative,positive]")
    assert (named.labels, named.splits["train"].column("label").to_pylist()) == (["negative", "positive"], [1, 0])
    hidden = Dataset.from_dict({"text": ["fine"], "label": [-1]}, features=CLASSES)
    hidden.save_to_disk(tmp_path / "hidden")
    assert read_table(tmp_path / "hidden", WANTED, TextFormat(named_classes=True)).columns["label"].to_pylist() == [
        "-1"
    ]


def test_texts_of_a_saved_data_set_are_predicted(tmp_path):
    DatasetDict({"train": rows(n=[1, 2, 3]), "test": rows(n=[1, 2, 3])}).save_to_disk(tmp_path / "saved")
    with open_source(str(tmp_path / "saved" / "test"), piece=2) as source:
        assert source.choose_text(None, None) == "text"
        chunks = list(source.chunks("text", 2))
    assert [chunk.texts for chunk in chunks] == [["fine", "dull"], ["so so"]]
    assert chunks[0].rows.column("n").to_pylist() == [1, 2]
    with (
        pytest.raises(
            UserError, match=r"input=.*saved has the splits test, train: name one of them, as in input=.*/train"
        ),
        open_source(str(tmp_path / "saved")),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_data_files": [{"filename": "../secret.arrow"}]}, r"names no Arrow files of its own in state.json"),
        ({"_data_files": []}, r"names no Arrow files of its own in state.json"),
        ({"_data_files": [{"filename": "missing.arrow"}]}, r"cannot be read as a data set of `datasets` \("),
        ({"_data_files": [{"filename": "dataset_info.json"}]}, r"cannot be read as a data set of `datasets` \("),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, r"is a selection of rows of an old release"),
    ],
)
def test_a_damaged_data_set_is_reported(tmp_path, change, sentence):
    rows().save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | change))
    with pytest.raises(UserError, match=sentence):
        own(tmp_path / "saved")


def test_half_a_file_is_reported(tmp_path):
    Dataset.from_dict({"text": ["fine"] * 5_000, "label": [1, 0] * 2_500}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:2_000])
    with pytest.raises(UserError, match=r"cannot be read as a data set of `datasets` \("):
        own(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read as a data set of `datasets` \("):
        own(tmp_path / "saved")
