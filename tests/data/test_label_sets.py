"""Labels of which a text has any number: read from lists, delimited texts and columns, and divided by the rarest."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentexp.config import TargetKind, load_config
from sentexp.data.audit import audit
from sentexp.data.findings import find_faults
from sentexp.data.label_sets import split_labels
from sentexp.data.sources import load_source
from sentexp.data.splits import NAMES, load_examples
from sentexp.data.targets import as_numbers, rarest_labels, target_array
from sentexp.errors import UserError

SETS = [["joy", "fear"], [], ["anger"], ["joy"], ["Anger", "joy", "joy"]]
CLASSES = ["Anger", "fear", "joy"]
MEMBERS = [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]]
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1).filter(
    lambda word: word == word.strip() and not word.endswith(".0")
)


def read(path, *overrides):
    """Return the source of a table whose texts have any number of labels."""
    return load_source(load_config("data=csv", f"data.path={path}", *overrides).data, TargetKind.label_sets)


def members(found, split="train"):
    return target_array(found.splits[split].column("label")).tolist()


def table(folder, ending):
    """Write the sets as lists of a format, or as delimited texts, and return the file."""
    frame, file = pd.DataFrame({"text": [f"film {n}" for n in range(5)], "label": SETS}), folder / f"x.{ending}"
    match ending:
        case "jsonl":
            frame.to_json(file, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(file)
        case "csv":
            frame.assign(label=[";".join(labels) for labels in SETS]).to_csv(file, index=False)
        case "tsv":  # lists as Python prints them
            frame.to_csv(file, index=False, sep="\t")
        case "txt":
            lines = [
                " ".join([*(f"__label__{label}" for label in labels), f"film {n}"]) for n, labels in enumerate(SETS)
            ]
            file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv", "tsv", "txt"])
def test_every_way_to_write_sets_is_read_alike(ending, tmp_path):
    found = read(table(tmp_path, ending))
    assert found.labels == CLASSES
    assert members(found) == MEMBERS
    assert found.splits["train"].column("text").to_pylist() == [f"film {n}" for n in range(5)]
    (note,) = [note for note in found.notes if "case" in note]
    assert "Anger, anger" in note


def test_columns_of_0_and_1_are_labels_in_their_order(tmp_path):
    rows = [("a", "1", "0", "TRUE"), ("b", "0", "0", "false"), ("c", " 1.0", "1", "0")]
    pd.DataFrame(rows, columns=["text", "joy", "anger", "fear"]).to_csv(tmp_path / "x.csv", index=False)
    found = read(tmp_path / "x.csv", "data.label=[joy,anger,fear]")
    assert found.labels == ["joy", "anger", "fear"]
    assert members(found) == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]
    turned = read(tmp_path / "x.csv", "data.label=[fear,joy]")
    assert members(turned) == [[1, 1], [0, 0], [0, 1]]


def test_a_data_set_that_was_saved_has_lists_of_classes(tmp_path):
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["joy", "anger", "fear"]))})
    Dataset.from_dict({"text": ["a", "b"], "label": [[0, 2], []]}, features).save_to_disk(str(tmp_path / "saved"))
    found = read(tmp_path / "saved", "data.labels=null")
    assert found.labels == ["fear", "joy"]
    assert members(found) == [[1, 1], [0, 0]]
    named = read(tmp_path / "saved", "data.labels=[joy,anger,fear]")
    assert members(named) == [[1, 0, 1], [0, 0, 0]]


def test_numbers_count_into_named_classes_and_a_mapping_joins_or_drops_labels(tmp_path):
    (tmp_path / "x.tsv").write_text("text\tlabel\na\t0,2\nb\t1\nc\t\n")
    found = read(tmp_path / "x.tsv", 'data.label_delimiter=","', "data.labels=[joy,anger,fear]")
    assert members(found) == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    mapping = "data.labels={0: good, 1: bad, 2: null}"
    mapped = read(tmp_path / "x.tsv", 'data.label_delimiter=","', mapping)
    assert mapped.labels == ["good", "bad"]
    assert members(mapped) == [[1, 0], [0, 1], [0, 0]]
    assert mapped.left_out["train"] == {}


@given(st.lists(WORDS, max_size=4))
def test_a_list_comes_back_from_json_and_from_python(words):
    assert split_labels(json.dumps(words), ";") == words
    assert split_labels(repr(words), ";") == words


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (" joy ; anger;", ["joy", "anger"]),
        ("", []),
        ("[]", []),
        ("[1, 2.0]", ["1", "2"]),
        ("['joy' 'anger']", None),  # as numpy prints an array: the two would become one
        ("[joy, anger]", None),
        ('{"joy": 1}', ['{"joy": 1}']),
        ("[[1]]", None),
        ("[null]", None),
        ("[" * 9000, None),
        (None, None),
    ],
)
def test_what_a_cell_holds(value, labels):
    assert split_labels(value, ";") == labels


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        (
            '{"text": "a", "label": ["joy"]}\n{"text": "b", "label": ["joy", "hapy"]}\n',
            ["data.labels=[joy,anger]"],
            r"Row 2 of .* has the label 'hapy' among .*, which is none of data.labels=\['joy', 'anger'\]",
        ),
        (
            '{"text": "a", "label": ["joy"]}\n{"text": "b"}\n{"text": "c", "label": ["fear"]}\n',
            [],
            r"Row 2 of .* has no list of labels: write an empty one where none holds",
        ),
        (
            '{"text": "a", "label": ["joy", ["fear"]]}\n{"text": "b", "label": ["joy", "anger"]}\n',
            [],
            r"Row 1 of .*, which are no list of texts: write them as \[\"joy\", \"fear\"\]",
        ),
        (
            '{"text": "a", "joy": 1, "anger": 0}\n{"text": "b", "joy": 0, "anger": 2}\n',
            ["data.label=[joy,anger]"],
            r"Row 2 of .* has '2' in the column anger of data.label: write 1 where it has that label, else 0",
        ),
        (
            '{"text": "a", "joy": 1}\n',
            ["data.label=[joy,hapy]"],
            r"data.label\[1\]=hapy is not a column of .*: its columns are joy, text",
        ),
    ],
)
def test_what_cannot_be_read_is_named(content, words, sentence, tmp_path):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "x.jsonl", *words)


def test_rows_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,joy\nb,joy;hapy\n,joy\nc,anger\n")
    found = read(tmp_path / "x.csv", "data.labels=[joy,anger]", "data.on_bad_rows=skip")
    assert members(found) == [[1, 0], [0, 1]]
    assert found.left_out["train"] == {"unknown label": 1, "empty text": 1}


def test_what_does_not_go_together_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("text,joy,anger\na,1,0\nb,0,1\n")
    place = ["data=csv", f"data.path={tmp_path / 'x.csv'}", "data.label=[joy,anger]"]
    with pytest.raises(UserError, match=r"is a column for each label of a text: set task.loss=multi_label"):
        load_source(load_config(*place).data)
    with pytest.raises(UserError, match=r"data.labels=.* has a column for each: set data.labels=null"):
        load_config(*place, "data.labels=[a,b]")
    with pytest.raises(UserError, match=r"data.label=\['joy'\] must be a column, or .*: two at least"):
        load_config(*place[:2], "data.label=[joy]")
    with pytest.raises(UserError, match=r"data.label_delimiter='' must be the text between two labels"):
        load_config(*place, "data.label_delimiter=''")
    with pytest.raises(UserError, match=r"task.loss=multi_label reads the labels of a table, and data=fpb"):
        load_config("data=fpb", "data.path=x", "task.loss=multi_label")
    for name in ("pos", "neg"):
        (tmp_path / "films" / name).mkdir(parents=True)
        (tmp_path / "films" / name / "1.txt").write_text("a film")
    with pytest.raises(UserError, match=r"data.label=\['joy', 'anger'\] names columns of a table"):
        read(tmp_path / "films", "data.label=[joy,anger]")


def test_lists_that_are_read_as_classes_are_noticed(tmp_path):
    words = ["data=csv", f"data.path={table(tmp_path, 'jsonl')}"]
    (note,) = [note for note in load_source(load_config(*words).data).notes if "multi_label" in note]
    assert (
        note == 'Labels such as ["Anger", "joy", "joy"] are lists: task.loss=multi_label learns several labels a text.'
    )
    with pytest.raises(UserError, match=r"holds list.*, and lists of labels with task.loss=multi_label"):
        load_source(load_config(*words[:1], f"data.path={table(tmp_path, 'parquet')}").data)
    many = [{"text": f"film {number}", "label": [str(number)]} for number in range(200)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    with pytest.raises(
        UserError, match=r"probably no classes; .*, or learn lists of labels with task.loss=multi_label"
    ):
        load_source(load_config(*words).data)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Return the splits of 1,000 texts with three labels, of which one is rare."""
    file, chance = tmp_path_factory.mktemp("sets") / "x.jsonl", np.random.default_rng(0)
    held = chance.random((1000, 3)) < (0.5, 0.3, 0.03)
    rows = [
        {"text": f"film {n}", "label": [name for name, has in zip(("joy", "fear", "awe"), row, strict=True) if has]}
        for n, row in enumerate(held.tolist())
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config("data=csv", f"data.path={file}", "data.train_subset=200")
    return load_examples(config.data, kind=TargetKind.label_sets), held.sum(0)[[2, 1, 0]]


def test_splits_and_subsets_hold_every_label_in_its_share(examples):
    found, counts = examples
    assert found.labels == ["awe", "fear", "joy"]
    for name, share in (("validation", 0.1), ("test", 0.1), ("train", 0.2)):
        held = found.targets(name).sum(0)
        np.testing.assert_allclose(held, share * counts, atol=3, err_msg=name)
        assert held[0] >= np.floor(share * counts[0]) - 1
    assert found.counts()["test"] == dict(zip(found.labels, found.targets("test").sum(0).tolist(), strict=True))
    assert found.kind is TargetKind.label_sets
    assert found.scale() is None


def test_the_stratum_of_a_row_is_its_rarest_label():
    sets = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]], np.uint8)
    assert rarest_labels(sets).tolist() == [1, 2, 0, 3, 2, 1]
    numbers = as_numbers(sets)
    assert len(set(numbers.tolist())) == 6
    assert as_numbers(np.array([3, 1])).tolist() == [3, 1]


def test_the_digest_depends_on_the_sets(tmp_path):
    digests = set()
    for labels in ("joy;fear", "fear"):
        (tmp_path / "x.csv").write_text(f"text,label\nx,{labels}\n" + "".join(f"{n},joy;fear\n" for n in range(40)))
        words = ("data=csv", f"data.path={tmp_path / 'x.csv'}")
        digests.add(load_examples(load_config(*words).data, kind=TargetKind.label_sets).digest())
    assert len(digests) == 2


def test_texts_that_contradict_each_other_are_found(tmp_path):
    rows = [{"text": "same", "label": ["joy"]}, {"text": "same", "label": ["joy", "fear"]}]
    rows += [{"text": f"film {n}", "label": ["fear"]} for n in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_examples(load_config("data=csv", f"data.path={tmp_path}/x.jsonl").data, kind=TargetKind.label_sets)
    finding = next(one for one in find_faults(found, near=False) if "another label" in one.name)
    assert sum(finding.rows.values()) == 2


def test_the_audit_counts_labels_alone_and_together(examples):
    found, _ = examples
    tokens = {name: Lengths(found.split(name).num_rows) for name in NAMES}
    result = audit("sets", found, tokens, near=False)
    held = found.targets("train").astype(int)
    assert result.labels["train"] == dict(zip(found.labels, held.sum(0).tolist(), strict=True))
    assert result.together["fear"]["joy"] == int((held[:, 1] & held[:, 2]).sum())
    assert result.together["awe"]["awe"] == result.labels["train"]["awe"]
    assert result.unlabelled == {name: int((found.targets(name).sum(1) == 0).sum()) for name in NAMES}
    assert any("f1_micro hides the rare ones" in warning for warning in result.warnings)
    assert any("Rows without any label" in warning for warning in result.warnings)
    assert not any("more than one label" in warning for warning in result.warnings)


class Lengths:
    """As much of tokens as an audit looks at."""

    limit, frame = 10, 2

    def __init__(self, rows):
        self.text_lengths, self.cut = np.full(rows, 5), np.zeros(rows, bool)
