"""Runs that read pairs: the same probabilities when they predict, and one sentence where pairs have no place."""

import csv
import json

import numpy as np
import pytest

from sentexp.tracking.predictions import file_name, read_predictions

RUNS = [("peft=lora",), ("task=causal_lm", "peft=lora", "task.label_words=[bad,good]"), ("model=minilm", "peft=head")]


@pytest.mark.parametrize("words", RUNS, ids=["seq_cls", "causal_lm", "encoder"])
def test_a_prediction_is_what_the_run_said(words, paired, aspects, command_line, tmp_path):
    result = paired(*words)
    rest = [f"input={aspects / 'test.csv'}", "output=out.csv", "prefix=said_", "tracking=none"]
    code, _, errors = command_line("predict", f"run={result.folder}", *rest)
    assert code == 0, errors
    assert "texts in the column sentence, the second in aspect, of" in errors
    said = read_predictions(result.folder / file_name("test"))
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = [[float(row[f"said_probability_{label}"]) for label in said.labels] for row in rows]
    np.testing.assert_allclose(found, said.probabilities, atol=1e-5)
    assert len({tuple(row) for row in said.probabilities[:2].tolist()}) == 2, "the aspect is not read"


def test_other_columns_are_named_and_missing_ones_reported(paired, aspects, command_line, tmp_path):
    result = paired("peft=lora")
    lines = [json.dumps({"body": "day 7 was warm", "about": "sun"}), json.dumps({"body": "day 8 was warm"})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    run = [f"run={result.folder}", "tracking=none", "input=in.jsonl", "output=out.jsonl"]
    code, _, errors = command_line("predict", *run, "text=body", "text_pair={about}")
    assert code == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["label"] in ("bad", "good")
    assert rows[1]["label"] is None
    code, _, errors = command_line("predict", *run, "text=body", "overwrite=true")
    assert code == 1
    assert "text_pair=aspect is not a column of in.jsonl: its columns are body, about" in errors


def test_where_pairs_have_no_place_it_is_reported(paired, finished, aspects, command_line):
    run = [f"run={paired('peft=lora').folder}", "tracking=none"]
    code, _, errors = command_line("predict", *run, "--text", "a sentence")
    assert code == 1
    assert "--text takes a single text, and run" in errors
    single = finished("peft=lora")
    words = [f"run={single.folder}", "tracking=none"]
    code, _, errors = command_line(
        "predict", *words, f"input={aspects / 'test.csv'}", "output=o.csv", "text_pair=aspect"
    )
    assert code == 1
    assert "text_pair=aspect names second texts, and this run reads one text a row" in errors
    other = [
        "data=csv",
        f"data.path={aspects}",
        "data.text=sentence",
        "split=test",
        "data.labels={bad: negative, good: positive}",
    ]
    code, _, errors = command_line("evaluate", *words, *other, "data.text_pair=aspect")
    assert code == 1
    assert "reads single texts: leave it out" in errors
    code, _, errors = command_line("evaluate", *run, *other[:-1])
    assert code == 1
    assert "reads pairs: name the column of the second texts" in errors
