"""Sources: layouts, columns, labels, and what is refused."""

import json
import socket
import zipfile

import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sentexp.config import load_config
from sentexp.data.sources import load_source
from sentexp.data.sources.phrasebank import LARGEST_MEMBER
from sentexp.errors import UserError
from sentexp.system.hub import hub_splits, hub_tables


def source(path, *overrides):
    single = ["data.splits.test=null"] if path.is_file() else []
    return load_source(load_config("data=sst2", f"data.path={path}", *single, *overrides).data)


def own(path, *overrides):
    return load_source(load_config("data=csv", f"data.path={path}", *overrides).data)


def texts(table):
    return table.column("text").to_pylist()


def labels(table):
    return table.column("label").to_pylist()


def raising(error):
    raise error


def test_glue_tsv_keeps_quotes_and_drops_trailing_blanks(tmp_path):
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"a quoted start \t1\nplain \t0\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")
    found = source(tmp_path)
    assert texts(found.splits["train"]) == ['"a quoted start', "plain"]
    assert labels(found.splits["train"]) == [1, 0]
    assert texts(found.splits["test"]) == ["fine"]
    assert found.stripped == {"train": 2, "test": 0}
    assert texts(source(tmp_path, "data.strip=false").splits["train"]) == ['"a quoted start ', "plain "]


@pytest.mark.parametrize("folder", ["", "data", "mine"])
def test_the_hub_layout_is_read_from_shards(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for shard in range(2):
        frame = pd.DataFrame({"sentence": [f"good {shard}", f"bad {shard}"], "label": [1, 0]})
        frame.to_parquet(tmp_path / folder / f"train-0000{shard}-of-00002.parquet")
        frame.to_parquet(tmp_path / folder / f"validation-0000{shard}-of-00002.parquet")
    found = source(tmp_path, *(["data.subset=mine"] if folder == "mine" else []))
    assert texts(found.splits["train"]) == ["good 0", "bad 0", "good 1", "bad 1"]


def test_a_repository_in_the_hubs_layout_is_read_by_its_card(tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path / "cache"))
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"]), "idx": Value("int32")})
    rows = Dataset.from_dict({"sentence": ["fine", "dull"], "label": [1, 0], "idx": [0, 1]}, features=features)
    repository = tmp_path / "repository"
    for subset in ("a", "b"):
        for name in ("train", "dev"):
            (repository / subset).mkdir(parents=True, exist_ok=True)
            rows.to_parquet(repository / subset / f"{name}-00000-of-00001.parquet")
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {subset}\n  data_files:\n  - split: train\n    path: {subset}/train-*\n"
        f"  - split: validation\n    path: {subset}/dev-*\n"
        for subset in ("a", "b")
    )
    (repository / "README.md").write_text(card + "---\n")
    tables = hub_tables("data.path", str(repository), "b", None, ["train", "validation"])
    assert tables["train"].column("sentence").to_pylist() == ["fine", "dull"]
    assert tables["train"].column("label").to_pylist() == [1, 0]
    assert hub_splits("data.path", str(repository), "b", None) == ["train", "validation"]
    with pytest.raises(UserError, match=r"has no split 'test' that can be read .*data.splits"):
        hub_tables("data.path", str(repository), "b", None, ["test"])
    with pytest.raises(UserError, match=r"has no split 'train' that can be read .*data.subset"):
        hub_tables("data.path", str(repository), None, None, ["train"])


def test_a_data_set_of_the_hub_becomes_rows(tmp_path, monkeypatch):
    table = pa.table({"sentence": ["fine ", "dull"], "label": [1, 0], "idx": [0, 1]})
    monkeypatch.setattr("sentexp.data.sources.table.hub_tables", lambda *given: dict.fromkeys(given[-1], table))
    found = load_source(load_config("data=sst2").data)
    assert set(found.splits) == {"train", "test"}
    assert texts(found.splits["test"]) == ["fine", "dull"]
    with pytest.raises(UserError, match=r"data.text=body is not a column of stanfordnlp/sst2: .* sentence, label, idx"):
        load_source(load_config("data=sst2", "data.text=body").data)


def test_labels_are_read_by_name_or_number(tmp_path):
    rows = [{"sentence": "a", "label": "Positive"}, {"sentence": "b", "label": "negative"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert labels(source(tmp_path / "x.jsonl").splits["train"]) == [1, 0]


@pytest.mark.parametrize(
    ("content", "overrides", "sentence"),
    [
        ("body,label\na,1\n", (), r"data.text=sentence is not a column of .*: its columns are body, label"),
        ("sentence,stars\na,1\n", (), r"data.label=label is not a column of .*: its columns are sentence, stars"),
        (
            "sentence ,label\na,1\n",
            (),
            r"its columns are 'sentence ', label. Did you mean \"data.text='sentence '\"\?",
        ),
        ("sentence,Label\na,1\n", (), r"its columns are sentence, Label. Did you mean data.label=Label\?"),
        ("sentences,label\na,1\n", (), r"Did you mean data.text=sentences\?"),
        ("sentence,label\na,1\n", ("data.slices=region",), r"data.slices\[0\]=region is not a column"),
        ("sentence,label\na,1\n", ("data.group=who",), r"data.group=who is not a column"),
        ("sentence,label\na,1\nb,7\n", (), r"Row 2 of .* has the label '7', which is none of .*negative.*positive"),
        (
            "sentence,label\na,1\nb,7\nc,8\n",
            (),
            r"has the label '7', .* \(and 1 more row\): .* map it with data.labels",
        ),
        ("sentence,label\na,-1\n", (), r"-1 marks hidden labels"),
        ("sentence,label\na,1\n  ,0\n", (), r"Row 2 of .* has an empty text: .* data.on_bad_rows=skip"),
        ("sentence,label\na,1\nb,\n", (), r"Row 2 of .* has the label ''"),
    ],
)
def test_faulty_rows_are_named(tmp_path, content, overrides, sentence):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=sentence):
        source(tmp_path / "x.csv", *overrides)


def test_a_header_with_blanks_is_read_as_the_question_says(tmp_path):
    (tmp_path / "x.csv").write_text("sentence ,label\na,1\nb,0\n")
    assert texts(source(tmp_path / "x.csv", "data.text='sentence '").splits["train"]) == ["a", "b"]


def test_faulty_rows_are_left_out_and_counted_on_request(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\na,1\n  ,0\nb,7\nc,0\nd,1,2\n,8\n")
    found = source(tmp_path / "x.csv", "data.on_bad_rows=skip")
    assert texts(found.splits["train"]) == ["a", "c"]
    assert found.left_out == {"train": {"empty text": 2, "unknown label": 1, "ragged": 1}}


def test_labels_that_are_found_are_the_classes_in_their_order(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,10\nb,9\nc,9.0\nd,-1\n")
    found = own(tmp_path / "x.csv")
    assert found.labels == ["-1", "9", "10"]
    assert labels(found.splits["train"]) == [2, 1, 1, 0]
    (tmp_path / "y.csv").write_text("text,label\na,good\nb,Bad\n")
    assert own(tmp_path / "y.csv").labels == ["Bad", "good"]


def test_labels_that_differ_in_case_only_are_one_class_and_that_is_reported(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,good\nb,Bad\nc,GOOD\nd,Good\n")
    found = own(tmp_path / "x.csv")
    assert found.labels == ["Bad", "GOOD"]
    assert labels(found.splits["train"]) == [1, 0, 1, 1]
    assert found.notes == ["The labels GOOD, Good, good differ only in case and are one class."]


def test_labels_are_mapped_and_left_out_by_configuration(tmp_path):
    stars = "".join(f"text {row},{row % 5 + 1}\n" for row in range(10))
    (tmp_path / "x.csv").write_text("body,stars\n" + stars)
    mapping = "data.labels={1: negative, 2: negative, 3: null, 4: positive, 5: positive}"
    found = own(tmp_path / "x.csv", "data.text=body", "data.label=stars", mapping)
    assert found.labels == ["negative", "positive"]
    assert labels(found.splits["train"]) == [0, 0, 1, 1] * 2
    assert found.left_out == {"train": {"left out by data.labels": 2}}
    with pytest.raises(UserError, match=r"Row 5 of .* has the label '5', which is none of data.labels="):
        own(tmp_path / "x.csv", "data.text=body", "data.label=stars", mapping.replace(", 5: positive", ""))
    (tmp_path / "x.csv").write_text("body,stars\na,1\nb,0\n")  # 0 is no number of a class where labels are mapped
    with pytest.raises(UserError, match=r"Row 2 of .* has the label '0', which is none of data.labels=.*5"):
        own(tmp_path / "x.csv", "data.text=body", "data.label=stars", mapping)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([(f"text {n}", n) for n in range(200)], r"200 different labels \(0, 1, 2, ...\): more than 100 classes"),
        ([("a", "good"), ("b", "good")], r"has one label only, good: a classifier needs at least two"),
        ([("a", "good"), ("b", ""), ("c", "bad")], r"Row 2 of .* has no label"),
    ],
)
def test_labels_that_are_no_classes_are_reported(tmp_path, rows, sentence):
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    with pytest.raises(UserError, match=sentence):
        own(tmp_path / "x.csv")


def test_a_header_that_is_repeated_below_is_reported(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\na,1\nsentence,label\nb,0\n")
    for read in (source, own):
        overrides = ["data.text=sentence"] if read is own else []
        with pytest.raises(UserError, match=r"Row 2 of .* has the label 'label'"):
            read(tmp_path / "x.csv", *overrides)


def test_slices_and_groups_are_kept(tmp_path):
    (tmp_path / "x.csv").write_text("text,label,region,who\na,1,north,x\nb,0,,y\n")
    table = own(tmp_path / "x.csv", "data.slices=[region]", "data.group=who").splits["train"]
    assert table.column("slice.region").to_pylist() == ["north", ""]
    assert table.column("group").to_pylist() == ["x", "y"]


def test_splits_may_be_files_of_their_own(tmp_path):
    for name in ("fit", "held_out"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name} a,1\n{name} b,0\n")
    found = own(tmp_path, "data.splits.train=fit", "data.splits.test=held_out.csv")
    assert texts(found.splits["train"]) == ["fit a", "fit b"]
    assert texts(found.splits["test"]) == ["held_out a", "held_out b"]


def test_splits_of_the_usual_names_are_taken_where_they_are(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name} a,1\n{name} b,0\n")
    assert set(own(tmp_path).splits) == {"train", "validation"}
    assert set(own(tmp_path, "data.splits.validation=null").splits) == {"train"}
    (tmp_path / "test.csv").write_text("text,label\nx,1\n")
    assert texts(own(tmp_path).splits["test"]) == ["x"]


def test_splits_of_the_usual_names_are_taken_from_the_hub(monkeypatch):
    table = pa.table({"text": ["fine ", "dull"], "label": [1, 0]})
    monkeypatch.setattr("sentexp.data.sources.table.hub_splits", lambda *_: ["train", "test", "unsupervised"])
    monkeypatch.setattr("sentexp.data.sources.table.hub_tables", lambda *given: dict.fromkeys(given[-1], table))
    assert set(load_source(load_config("data=imdb", "data.path=stanfordnlp/imdb").data).splits) == {"train", "test"}


def test_two_files_for_one_split_are_not_guessed_at(tmp_path):
    for name in ("train.csv", "train.tsv"):
        (tmp_path / name).write_text("text,label\na,1\n")
    with pytest.raises(UserError, match=r"has 2 files for the split 'train' \(train.csv, train.tsv\)"):
        own(tmp_path)
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t1\nb\t0\n")
    assert texts(own(tmp_path, "data.splits.train=train.tsv").splits["train"]) == ["a", "b"]


def test_a_missing_path_is_named():
    with pytest.raises(UserError, match=r"data.path=./nowhere does not exist"):
        load_source(load_config("data=sst2", "data.path=./nowhere").data)


def test_a_missing_split_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("sentence,label\na,1\n")
    with pytest.raises(UserError, match=r"no file for the split 'validation' \(found: train.csv\)"):
        source(tmp_path)


def test_data_sets_on_the_hub_while_offline_say_what_to_pass(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: raising(socket.gaierror("no such name")))
    monkeypatch.setattr("time.sleep", lambda _: None)  # before each of five more tries of the hub's library
    for name, repository in {
        "sst2": "stanfordnlp/sst2",
        "fpb": "takala/financial_phrasebank",
        "multilingual": "tyqiangz/multilingual-sentiments",
    }.items():
        with pytest.raises(UserError, match=rf"data.path={repository} .* cannot be reached .* data.path=<folder>"):
            load_source(load_config(f"data={name}").data)


def test_numbers_are_texts_and_may_be_names_of_labels(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\n5,1\n7,5\n")
    rows = source(tmp_path / "x.csv", "data.labels=['1','5']").splits["train"]
    assert texts(rows) == ["5", "7"]
    assert labels(rows) == [0, 1]
    (tmp_path / "y.csv").write_text("sentence,label\n5,0\n")
    with pytest.raises(UserError, match="has the label '0'"):
        source(tmp_path / "y.csv", "data.labels=['1','5']")


def test_one_file_has_no_named_splits(tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\na,1\n")
    with pytest.raises(UserError, match=r"is one file, but data.splits.validation=foo"):
        source(tmp_path / "x.csv", "data.splits.validation=foo")


def test_a_package_has_one_table():
    with pytest.raises(UserError, match=r"data=imdb is one table of an installed package"):
        load_source(load_config("data=imdb", "data.splits.test=test").data)


PHRASES = {
    "50": ["Sales rose to EUR 5 mn .@positive", "Profit fell , it said .@negative", "It has 3 @ 4 shops .@neutral"],
    "66": ["Sales rose to EUR 5 mn .@positive", "Profit fell , it said .@negative"],
    "75": ["Sales rose to EUR 5 mn .@positive"],
    "All": ["Sales rose to EUR 5 mn .@positive"],
}


def phrase_files():
    return {
        f"Sentences_{level}Agree.txt": ("\r\n".join(lines) + "\r\n").encode("latin-1")
        for level, lines in PHRASES.items()
    }


def phrases(path):
    return load_source(load_config("data=fpb", f"data.path={path}").data).splits["train"]


def test_the_phrase_bank_is_read_from_a_folder_or_a_zip_in_any_layout(tmp_path):
    (tmp_path / "plain").mkdir()
    for name, content in phrase_files().items():
        (tmp_path / "plain" / name).write_bytes(content)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "hub" / "data" / "FinancialPhraseBank-v1.0.zip", "w") as archive:
        for name, content in phrase_files().items():
            archive.writestr(f"FinancialPhraseBank-v1.0/{name}", content)
            archive.writestr(f"__MACOSX/FinancialPhraseBank-v1.0/._{name}", b"x")
    for path in (tmp_path / "plain", tmp_path / "hub", tmp_path / "hub" / "data" / "FinancialPhraseBank-v1.0.zip"):
        rows = phrases(path)
        assert texts(rows) == ["Sales rose to EUR 5 mn .", "Profit fell , it said .", "It has 3 @ 4 shops ."]
        assert labels(rows) == [2, 0, 1]
        assert rows.column("slice.agreement").to_pylist() == ["all", "66", "50"]


def test_a_phrase_that_stands_twice_may_have_two_levels(tmp_path):
    files = phrase_files()
    files["Sentences_50Agree.txt"] += b"Profit fell , it said .@negative\r\n"
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert phrases(tmp_path).column("slice.agreement").to_pylist() == ["all", "66", "50", "50"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["../Sentences_50Agree.txt"], r"points out of the archive: it is not trusted"),
        (["a/Sentences_50Agree.txt", "b/Sentences_50Agree.txt"], r"holds 2 files of the name Sentences_50Agree.txt"),
        (["readme.txt"], r"holds 0 files of the name"),
    ],
)
def test_an_archive_that_is_not_the_phrase_bank_is_refused(tmp_path, names, sentence):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"a@neutral")
    with pytest.raises(UserError, match=sentence):
        phrases(tmp_path / "x.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Sentences_50Agree.txt", b"0" * (LARGEST_MEMBER + 1))
    with pytest.raises(UserError, match=r"bytes: the real one is below one million"):
        phrases(tmp_path / "x.zip")


def test_a_damaged_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Sentences_50Agree.txt", b"a sentence of news@neutral\r\n" * 500)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[70:90] = bytes(20)
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"x.zip is not a whole zip"):
        phrases(tmp_path / "x.zip")


def test_faults_in_the_phrase_bank_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no Sentences_50Agree.txt and no zip"):
        phrases(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not whole")
    with pytest.raises(UserError, match=r"(is not a whole zip|no zip that could hold it)"):
        phrases(tmp_path)
    for name, content in phrase_files().items():
        (tmp_path / name).write_bytes(content.replace(b"@negative", b""))
    with pytest.raises(UserError, match=r"Line 2 of Sentences_50Agree.txt .* must be text@label"):
        phrases(tmp_path)


def languages(tmp_path, *overrides):
    return load_source(load_config("data=multilingual", f"data.path={tmp_path}", *overrides).data)


def write_languages(folder):
    for language, names in {"english": ("train", "valid", "test"), "thai": ("valid", "test")}.items():
        (folder / language).mkdir(parents=True)
        for name in names:
            rows = f'"{language} {name}, a",positive,x\n{language} {name} b,negative,x\n'
            (folder / language / f"{name}.csv").write_text("text,label,source\n" + rows)


@pytest.mark.parametrize("place", ["", "data"])
def test_languages_are_read_from_their_folders(tmp_path, place):
    write_languages(tmp_path / place)
    found = languages(tmp_path)
    assert texts(found.splits["train"]) == ["english train, a", "english train b"]
    assert found.splits["test"].column("slice.language").to_pylist() == ["english", "english", "thai", "thai"]
    assert labels(found.splits["train"]) == [2, 0]
    assert "thai: no training texts here" in found.notes[0]
    assert languages(tmp_path, "data.languages=[english]").notes == []


def test_languages_that_are_not_there_are_named(tmp_path):
    write_languages(tmp_path)
    with pytest.raises(UserError, match=r"names welsh, which .* lacks: it has english, thai"):
        languages(tmp_path, "data.languages=[english,welsh]")
    with pytest.raises(UserError, match=r"thai has no train.csv .* nothing to train on"):
        languages(tmp_path, "data.languages=thai")
    with pytest.raises(UserError, match=r"has no folders <language>/"):
        languages(tmp_path / "english")


def test_ratings_become_classes_and_documents_groups(tmp_path):
    name = "amazonReviewSnippets_GroundTruth.txt"
    rows = ["1_1\t0.5\tit is here", "1_2\t-0.6\tit broke", '2_1\t3\tI "love" it']
    (tmp_path / name).write_bytes(("id\tsentiment\ttext\r\n" + "\r\n".join(rows) + "\r\n").encode())

    def read(*overrides):
        return load_source(
            load_config("data=tweets", "data.domains=[products]", f"data.path={tmp_path}", *overrides).data
        ).splits["train"]

    assert labels(read()) == [1, 0, 2]
    assert labels(read("data.neutral_band=0")) == [2, 0, 2]
    assert labels(read("data.neutral_band=1")) == [1, 1, 2]
    assert labels(read("data.labels={neutral: null}")) == [0, 1]
    assert read().column("group").to_pylist() == ["products 1", "products 1", "products 2"]
    assert read().column("slice.domain").to_pylist() == ["products"] * 3
    (tmp_path / name).write_text("id\tsentiment\ttext\n1\t5\ta\n")
    with pytest.raises(UserError, match=r"Row 1 of .* has the rating '5': it must be a number from -4 to 4"):
        read()


def test_the_embedded_tweets():
    rows = load_source(load_config("data=tweets").data).splits["train"]
    assert [labels(rows).count(index) for index in range(3)] == [1062, 838, 2300]
    everything = load_source(load_config("data=tweets", "data.domains=all").data).splits["train"]
    assert everything.num_rows == 4_200 + 10_605 + 3_708 + 5_190


def test_the_files_of_glue(corpora):
    found = source(corpora / "sst2")
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 651, "test": 44}
    assert found.stripped == {"train": 651, "test": 44}
    assert [labels(found.splits["test"]).count(index) for index in range(2)] == [20, 24]
    with pytest.raises(
        UserError, match=r"data.label=label is not a column of .*test.tsv: its columns are index, sentence"
    ):  # GLUE hides those of its test split
        source(corpora / "sst2", "data.splits.test=test")


def test_the_files_of_twelve_languages(corpora):
    found = languages(corpora / "multilingual").splits
    counts = {name: table.column("slice.language").value_counts().to_pylist() for name, table in found.items()}
    counts = {name: {row["values"]: row["counts"] for row in rows} for name, rows in counts.items()}
    for language in ("arabic", "english", "french", "german", "hindi", "italian", "portuguese", "spanish"):
        assert [counts[name][language] for name in ("train", "validation", "test")] == [27, 6, 12]
    assert [counts[name]["indonesian"] for name in ("train", "validation", "test")] == [30, 9, 6]
    assert [counts[name]["malay"] for name in ("train", "validation", "test")] == [24, 9, 12]
    for language in ("chinese", "japanese"):
        assert [counts[name].get(language) for name in ("train", "validation", "test")] == [None, 18, 15]
    assert len(counts["test"]) == 12
    german = [text for table in found.values() for text in texts(table) if "\ufffd" in text]
    assert len(german) == 4
    assert german[0] == "Die Lieferung kostet f\ufffdnfzehn Euro"


def test_a_folder_of_texts_for_each_class_is_read(tmp_path):
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.txt").write_text(f"{split} {label} film {number}\nin two lines")
    (tmp_path / "README.txt").write_text("no row")
    found = own(tmp_path)
    assert found.labels == ["neg", "pos"]
    assert texts(found.splits["train"])[0] == "train neg film 0\nin two lines"
    assert labels(found.splits["test"]) == [0, 0, 0, 1, 1, 1]
    assert set(own(tmp_path / "train").splits) == {"train"}
    with pytest.raises(UserError, match=r"has no folder held_out with a folder of .txt files .*: it has test, train"):
        own(tmp_path, "data.splits.test=held_out")
    for key in ("data.slices=region", "data.group=region"):
        with pytest.raises(UserError, match=r"is a folder of texts for each class, which has no column region"):
            own(tmp_path, key)
    (tmp_path / "train/pos/3.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"3.txt is not utf-8: name its encoding with data.encoding"):
        own(tmp_path)
    assert "caf\xe9" in texts(own(tmp_path, "data.encoding=latin-1").splits["train"])
    (tmp_path / "train/pos/3.txt").unlink()
    (tmp_path / "train/pos/4.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"4.txt is not a file: a folder of texts may hold no devices, pipes or broken"):
        own(tmp_path)


def test_lines_in_fasttexts_form_are_read(tmp_path):
    (tmp_path / "x.txt").write_text("__label__2 Great: a film\n\n__label__1 dull\n")
    found = own(tmp_path / "x.txt")
    assert (found.labels, texts(found.splits["train"])) == (["1", "2"], ["Great: a film", "dull"])
    for content in ("no label here\n", "__label__2 __label__3 two labels\n"):
        (tmp_path / "x.txt").write_text(content)
        with pytest.raises(
            UserError, match=r"Line 1 of .*x.txt reads .*: it must be one __label__<label> and its text"
        ):
            own(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"data.text=body is not a column of .*x.txt: its columns are text, label"):
        own(tmp_path / "x.txt", "data.text=body")


def test_several_files_are_one_table(tmp_path):
    for number in range(3):
        (tmp_path / f"part-{number}.csv").write_text(f"text,label\nfilm {number},{number % 2}\n")
    found = own(f"{tmp_path}/part-*.csv")
    assert texts(found.splits["train"]) == ["film 0", "film 1", "film 2"]
    with pytest.raises(UserError, match=r"data.path=.*/other-\*.csv matches no file"):
        own(f"{tmp_path}/other-*.csv")


def test_a_folder_without_a_split_to_train_on_is_refused(tmp_path):
    (tmp_path / "test.csv").write_text("text,label\ngood,pos\nbad,neg\n")
    with pytest.raises(UserError, match=r"has no split for data.splits.train=auto \(found: test\): name the one to"):
        own(tmp_path, "data.splits.train=auto")
