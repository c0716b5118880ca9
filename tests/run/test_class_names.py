"""Classes with any characters in their names: trained, recorded, shown, predicted, compared and described."""

import csv
import json

import pytest
from mlflow import MlflowClient

from sentexp.config.metric_names import safe_classes, safe_names, shown_names

NAMES = ["$x_1$ [red]b", "anger,fear", "macro", "très «bon»/100 % | \u05d8\u05d5\u05d1"]


def test_safe_names_are_different_and_safe():
    assert safe_names(["a!", "a?", "a_", "", "x" * 300, "x" * 301]) == {
        "a!": "a_",
        "a?": "a__",
        "a_": "a___",
        "": "none",
        "x" * 300: "x" * 200,
        "x" * 301: "x" * 200 + "_",
    }
    assert safe_classes(["macro", "micro", "so so"]) == {"macro": "macro_", "micro": "micro_", "so so": "so so"}
    assert shown_names(["a/b", "c"])["f1_a_b"] == "f1_a/b"


@pytest.fixture
def table(tmp_path):
    """Return a table of 160 sentences, and the words that name it."""
    with (tmp_path / "films.csv").open("w", newline="") as stream:
        rows = [(f"{'abcd'[number % 4] * 3} film {number}", NAMES[number % 4]) for number in range(160)]
        csv.writer(stream).writerows([("text", "label"), *rows])
    return [
        "data=csv",
        f"data.path={tmp_path / 'films.csv'}",
        "data.validation_fraction=0.25",
        "data.test_fraction=0.25",
    ]


@pytest.mark.slow
def test_a_run_with_such_classes_goes_all_the_way(table, store, command_line, tmp_path):
    quick = [
        "trainer.max_steps=2",
        "trainer.progress_bar=false",
        "tracking.system_metrics=false",
        "trainer.batch_size=8",
    ]
    record = [f"tracking.uri={store}", f"output_dir={tmp_path / 'runs'}"]
    code, output, errors = command_line(
        "model=tiny", *table, *quick, *record, "plots=true", "data.class_weights=balanced"
    )
    assert code == 0, errors
    for name in NAMES:
        assert f"f1_{name}"[:20] in output
    (run,) = MlflowClient(store).search_runs(["1"])
    assert {key for key in run.data.metrics if key.startswith("test/f1_")} == {
        f"test/f1_{name}"
        for name in ("_x_1_ _red_b", "anger_fear", "macro", "macro_", "très _bon__100 _ _ \u05d8\u05d5\u05d1")
    }
    assert "class_weight.anger_fear" in run.data.params
    folder = next((tmp_path / "runs").glob("*/result.json")).parent
    assert json.loads((folder / "result.json").read_text())["labels"] == NAMES

    code, _, errors = command_line("predict", f"run={folder}", "tracking=none", "input=films.csv", "output=out.csv")
    assert code == 0, errors
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[2:] == ["predicted_label", *(f"predicted_probability_{name}" for name in NAMES)]
    assert {row["predicted_label"] for row in rows} <= set(NAMES)

    code, output, errors = command_line("evaluate", "run=" + run.info.run_id, *table, "split=all", *record)
    assert code == 0, errors
    assert "f1_anger,fear" in output
    code, _, errors = command_line("export", f"run={folder}", "format=peft", "output=exported", "tracking=none")
    assert code == 0, errors
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "très «bon»/100 % \\| \u05d8\u05d5\u05d1" in card
    code, output, errors = command_line("compare", f"runs=[{run.info.run_id[:8]}]", *record[:1], "output=report")
    assert code == 0, errors
    report = (tmp_path / "report" / "report.html").read_text()
    assert "anger,fear" in report
