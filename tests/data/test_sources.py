"""Sources: layouts, columns, labels, and what is refused."""

import json

import pandas as pd
import pytest

from sentexp.config import load_config
from sentexp.data.sources import load_source
from sentexp.errors import UserError


def source(path, *overrides):
    single = ["data.splits.test=null"] if path.is_file() else []
    return load_source(load_config("data=sst2", f"data.path={path}", *single, *overrides).data)


def test_glue_tsv_keeps_quotes_and_drops_trailing_blanks(tmp_path):
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"a quoted start \t1\nplain \t0\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")
    splits = source(tmp_path)
    assert splits["train"]["text"][:] == ['"a quoted start', "plain"]
    assert splits["train"]["label"][:] == [1, 0]
    assert splits["validation"]["text"][:] == ["fine"]


@pytest.mark.parametrize("folder", ["", "data", "mine"])
def test_the_hub_layout_is_read_from_shards(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for shard in range(2):
        frame = pd.DataFrame({"sentence": [f"good {shard}", f"bad {shard}"], "label": [1, 0]})
        frame.to_parquet(tmp_path / folder / f"train-0000{shard}-of-00002.parquet")
        frame.to_parquet(tmp_path / folder / f"validation-0000{shard}-of-00002.parquet")
    splits = source(tmp_path, *(["data.subset=mine"] if folder == "mine" else []))
    assert splits["train"]["text"][:] == ["good 0", "bad 0", "good 1", "bad 1"]


def test_labels_are_read_by_name_or_number(tmp_path):
    rows = [{"sentence": "a", "label": "Positive"}, {"sentence": "b", "label": "negative"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert source(tmp_path / "x.jsonl")["train"]["label"][:] == [1, 0]


def test_a_text_that_looks_like_a_missing_value_is_a_text(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\nNA,1\nnull,0\n")
    assert source(tmp_path / "x.csv")["train"]["text"][:] == ["NA", "null"]


@pytest.mark.parametrize(
    ("content", "overrides", "sentence"),
    [
        ("body,label\na,1\n", (), r"data.text=sentence is not a column of .*: its columns are body, label"),
        ("sentence,stars\na,1\n", (), r"data.label=label is not a column of .*: its columns are sentence, stars"),
        ("sentence,label\na,1\nb,7\n", (), r"Row 2 of .* has the label '7', which is none of .*negative.*positive"),
        ("sentence,label\na,-1\n", (), r"-1 marks hidden labels"),
        ("sentence,label\na,1\n  ,0\n", (), r"Row 2 of .* has an empty text"),
        ("", (), r"cannot be read as .csv"),
        ("sentence,label\n", (), r"cannot be read as .csv .*at least one row"),
    ],
)
def test_faulty_rows_are_named(tmp_path, content, overrides, sentence):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=sentence):
        source(tmp_path / "x.csv", *overrides)


def test_a_missing_path_is_named():
    with pytest.raises(UserError, match=r"data.path=./nowhere does not exist"):
        load_source(load_config("data=sst2", "data.path=./nowhere").data)


def test_a_missing_split_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("sentence,label\na,1\n")
    with pytest.raises(UserError, match=r"no file for the split 'validation' \(found: train.csv\)"):
        source(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(UserError, match=r"ending '.xlsx': it must be one of .tsv"):
        source(tmp_path / "x.xlsx")


def test_a_data_set_on_the_hub_while_offline_says_what_to_pass():
    with pytest.raises(UserError, match=r"data.path=stanfordnlp/sst2 .* cannot be reached .* data.path=<folder>"):
        load_source(load_config("data=sst2").data)


def test_numbers_are_texts_and_may_be_names_of_labels(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\n5,1\n7,5\n")
    rows = source(tmp_path / "x.csv", "data.labels=['1','5']")["train"]
    assert rows["text"][:] == ["5", "7"]
    assert rows["label"][:] == [0, 1]
    (tmp_path / "y.csv").write_text("sentence,label\n5,0\n")
    with pytest.raises(UserError, match="has the label '0'"):
        source(tmp_path / "y.csv", "data.labels=['1','5']")


def test_one_file_has_no_named_splits(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\na,1\n")
    with pytest.raises(UserError, match=r"is one file, but data.splits.validation=foo"):
        source(tmp_path / "x.csv", "data.splits.validation=foo")


def test_garbage_in_a_parquet_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"x.parquet cannot be read as .parquet"):
        source(tmp_path / "x.parquet")


def test_a_package_has_one_table():
    with pytest.raises(UserError, match=r"data=imdb is one table of an installed package"):
        load_source(load_config("data=imdb", "data.splits.test=test").data)


def test_real_sst2(shared):
    splits = source(shared / "sst2")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 67_349, "validation": 872}
