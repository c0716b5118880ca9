"""The audit: every fault that is planted is found and counted, what is sound is not accused, nothing is changed."""

import json

import pytest

from sentexp.config import load_config
from sentexp.data.audit import audit
from sentexp.data.findings import MOJIBAKE
from sentexp.data.prompts import Prompt
from sentexp.data.splits import NAMES, duplicate_free, load_examples
from sentexp.data.tokens import tokenize
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


def look(data, tokenizer, max_length=None, near=True):
    examples = load_examples(data, whole=True)
    limit = max_length or data.max_length
    tokens = {
        name: tokenize(examples.split(name), tokenizer, Prompt(), limit, 10_000, progress=False) for name in NAMES
    }
    return audit(data.name, examples, tokens, near), examples


@pytest.fixture
def planted(tmp_path, tokenizer):
    """Return a function from rows by split, as (text, label), to their audit."""

    def build(splits, *overrides, **options):
        for name, rows in splits.items():
            lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        words = ["data=csv", f"data.path={tmp_path}", "data.splits.validation=validation", "data.splits.test=test"]
        return look(load_config(*words, *overrides).data, tokenizer, **options)

    return build


SOUND = {
    "train": [
        ("the cast is fine and funny", "good"),
        ("a dull affair from start to end", "bad"),
        ("naïve über café", "good"),
    ],
    "validation": [("we laughed a lot that evening", "good"), ("boring", "bad")],
    "test": [("what a lovely little thing", "good"), ("北京的天气很好，我很喜欢", "bad")],
}


def plus(**more):
    return {name: rows + more.get(name, []) for name, rows in SOUND.items()}


def test_sound_data_are_not_accused(planted):
    found, _ = planted(SOUND)
    assert [finding.name for finding in found.findings if finding.found] == []
    assert found.warnings == []
    assert found.rows == {"train": 3, "validation": 2, "test": 2}
    assert found.labels["train"] == {"bad": 1, "good": 2}


@pytest.mark.parametrize(
    ("name", "more", "rows"),
    [
        ("repeated text (exact)", {"train": [("boring!", "bad")] * 3}, [2, 0, 0]),
        ("repeated text (normalised)", {"test": [("So  WHAT", "bad"), ("so what", "bad")]}, [0, 0, 1]),
        ("text also in train", {"test": [("The cast is  fine and funny", "good")]}, [None, 0, 1]),
        ("text also in validation", {"test": [("Boring", "bad")]}, [None, None, 1]),
        ("text that has another label elsewhere", {"test": [("Boring", "good")]}, [0, 1, 1]),
        ("near-duplicate of a text in train", {"test": [("and the cast is fine, funny!!", "good")]}, [None, 0, 1]),
        (
            "near-duplicate of a text in its split",
            {"train": [("the cast is fine and funny...", "good"), ("the cast is fine and funny?", "good")]},
            [3, 0, 0],
        ),
        (
            "near-duplicate of a text in validation",
            {"test": [("that evening we laughed a lot", "good")]},
            [None, None, 1],
        ),
        ("replacement character U+FFFD", {"train": [("f\ufffdr immer", "good")]}, [1, 0, 0]),
        ("control character", {"validation": [("nul \0 here", "good"), ("bell \x07 here", "bad")]}, [0, 2, 0]),
        ("bidirectional control character", {"test": [("go \u202eback", "good")]}, [0, 0, 1]),
        ("piece of HTML", {"train": [("so<br /><br />good", "good"), ("bread &amp; butter", "good")]}, [2, 0, 0]),
        ("written-out escape such as \\u2019", {"train": [(r"can\u2019t wait", "good")]}, [1, 0, 0]),
        ("spreadsheet formula", {"train": [("=cmd|' /C calc'!A0", "good"), ("=SUM(A1)", "bad")]}, [2, 0, 0]),
        (MOJIBAKE, {"test": [("trÃ¨s agrÃ©able, lâ€™ami", "good"), ("a dash \x96 of cp1252", "bad")]}, [0, 0, 2]),
        ("surrounding blanks, which were removed", {"train": [(" so ", "bad")]}, [1, 0, 0]),
    ],
)
def test_every_planted_fault_is_found(planted, name, more, rows):
    found, _ = planted(plus(**more))
    finding = found.finding(name)
    assert [finding.rows.get(split) for split in NAMES] == rows
    assert finding.examples or "exact" in name or "blanks" in name


def test_examples_show_the_place_and_no_raw_control_character(planted):
    found, _ = planted(plus(train=[("x" * 500 + " \x1b[31m red", "good")]))
    (example,) = found.finding("control character").examples
    assert r"\x1b[31m red" in example
    assert example.isprintable()
    assert example.startswith("train 4: ...")


def test_emoji_quotes_and_mathematics_are_no_faults(planted):
    more = [
        ("i love it 👍🏽 :-) <3", "good"),
        ("5 < 6 & 7 > 2", "bad"),
        ("-- said no one", "bad"),
        ("“really” — ‘yes’", "good"),
    ]
    found, _ = planted(plus(train=more))
    assert [finding.name for finding in found.findings if finding.found] == []


def test_warnings_are_sentences(planted):
    extra = [("the cast is fine and funny", "good")]
    found, _ = planted(
        plus(train=[(f"so many good words {i} about film {i}", "good") for i in range(9)], test=extra), max_length=30
    )
    text = "\n".join(found.warnings)
    assert "The largest class of the training split has 11.0 times the rows of the smallest" in text
    assert "1 test texts are also in the training split" in text
    assert "cut at 30 tokens (data.max_length" in text


def test_a_class_that_a_split_lacks_is_reported(planted):
    found, _ = planted({**SOUND, "test": [("so lovely", "good")]}, "data.labels=[bad,good,so so]")
    assert "No row of the test split has the label bad, so so: no metric of it can be measured there." in found.warnings
    assert "No row of the train split has the label so so: it cannot be learnt." in found.warnings


def test_spellings_of_one_class_are_proposed(planted):
    found, _ = planted(plus(train=[("so so", "Good.")]))
    assert any('"data.labels={bad: bad, good: good, Good.: good}"' in sentence for sentence in found.warnings)
    assert len(found.labels["train"]) == 3


def test_groups_that_the_source_divides_are_reported(tmp_path, tokenizer):
    for name, who in {"train": "xy", "validation": "zx", "test": "zz"}.items():
        rows = [json.dumps({"text": f"{name} {i}", "label": i, "who": who[i]}) for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*rows, json.dumps({"text": f"{name} no", "label": 0})]))
    words = ["data=csv", f"data.path={tmp_path}", "data.splits.validation=validation", "data.splits.test=test"]
    found, _ = look(load_config(*words, "data.group=who").data, tokenizer)
    assert found.finding("group also in train").rows == {"validation": 1, "test": 0}
    assert any("own splits divide: 1 validation, 0 test" in sentence for sentence in found.warnings)


def test_rows_that_were_left_out_are_reported(planted):
    found, _ = planted(plus(train=[("", "good"), ("x", "so so")]), "data.labels=[bad,good]", "data.on_bad_rows=skip")
    assert "Rows left out of the source's train split: 1 (empty text), 1 (unknown label)." in found.warnings


def test_lengths_are_counted(planted):
    found, _ = planted(plus(train=[("x" * 99, "bad")]), max_length=50)
    assert found.token_quantiles["train"][-1] == 99
    assert sum(found.tokens["train"]) == 4
    assert found.cut["train"] == pytest.approx(1 / 4)
    assert found.token_edges[-1] >= 99


def test_an_audit_is_json(planted):
    found, _ = planted(SOUND)
    assert json.loads(json.dumps(found.to_dict()))["rows"] == found.rows


def test_the_duplicate_free_rows_stand_nowhere_else(planted):
    _, examples = planted(
        plus(test=[("The cast is fine and FUNNY", "good"), ("Boring", "bad"), ("new", "bad"), ("New", "bad")])
    )
    assert duplicate_free(examples).tolist() == [True, True, False, False, True, False]


def test_the_known_faults_of_public_data_are_found(corpora, tokenizer):
    sst2, _ = look(load_config("data=sst2", f"data.path={corpora / 'sst2'}").data, tokenizer, near=False)
    assert sum(sst2.finding("repeated text (exact)").rows[name] for name in ("train", "validation")) == 9
    assert sst2.finding("surrounding blanks, which were removed").rows == {"train": 651, "test": 44}
    fpb, _ = look(load_config("data=fpb", f"data.path={corpora / 'fpb'}").data, tokenizer)
    assert sum(fpb.finding("repeated text (exact)").rows.values()) == 4
    assert fpb.finding("text also in train").rows == {"validation": 0, "test": 0}
    assert sum(fpb.finding("text that has another label elsewhere").rows.values()) == 4
    words = ["data=csv", f"data.path={corpora / 'imdb'}", "data.splits.test=test"]
    imdb, _ = look(load_config(*words).data, tokenizer, near=False)
    assert sum(imdb.finding("piece of HTML").rows.values()) == 60


def test_the_known_faults_of_the_languages_are_found(corpora, tokenizer):
    words = ["data=multilingual", f"data.path={corpora / 'multilingual'}"]
    for language in ("french", "indonesian", "malay"):
        found, _ = look(load_config(*words, f"data.languages={language}").data, tokenizer, near=False)
        assert found.finding("text also in train").rows == {"validation": 1, "test": 1}, language
    asian, _ = look(load_config(*words, "data.languages=[english,chinese,japanese]").data, tokenizer, near=False)
    assert asian.finding("text also in train").rows == {"validation": 0, "test": 0}
    assert asian.finding("text also in validation").rows == {"test": 2}
    german, _ = look(load_config(*words, "data.languages=german").data, tokenizer)
    assert german.finding("replacement character U+FFFD").rows == {"train": 4, "validation": 0, "test": 0}
