"""Ratings: measured as ordered classes in a run, its baselines and evaluations, and ranked by a comparison."""

import csv

import pytest
from mlflow import MlflowClient

from sentexp.config import load_config
from sentexp.config.metric_names import ORDERED_METRICS
from sentexp.data.sources import load_source
from sentexp.errors import UserError


@pytest.fixture
def table(tmp_path):
    """Return a table of 250 reviews of 1 to 5 stars, and the words that name it."""
    with (tmp_path / "stars.csv").open("w", newline="") as stream:
        rows = [(f"{'abcde'[number % 5] * 4} film {number}", float(number % 5 + 1)) for number in range(250)]
        csv.writer(stream).writerows([("text", "label"), *rows])
    return ["data=csv", f"data.path={tmp_path / 'stars.csv'}", "data.validation_fraction=0.2", "data.test_fraction=0.2"]


@pytest.mark.slow
def test_ratings_are_measured_all_the_way(table, store, command_line, tmp_path):
    quick = [
        "trainer.max_steps=3",
        "trainer.progress_bar=false",
        "tracking.system_metrics=false",
        "trainer.batch_size=8",
    ]
    record = [f"tracking.uri={store}", f"output_dir={tmp_path / 'runs'}"]
    words = ["model=tiny", *table, *quick, *record, "plots=false"]
    code, output, errors = command_line(
        "--multirun", *words, "data.ordered=true", "trainer.monitor=validation/mae", "baseline=true", "seed=1,2"
    )
    assert code == 0, errors
    assert "if they are ratings" not in output
    heads = output.partition("\nsweep\n")[2].splitlines()[1:4]
    assert [word for head in heads for word in head.replace("┃", " ").split() if word in ("mae", "qwk", "auroc")] == [
        "mae", "mae", "qwk",
    ]  # fmt: skip
    client = MlflowClient(store)
    runs = [run for run in client.search_runs(["1"]) if "test/accuracy" in run.data.metrics]
    assert len(runs) > 2
    for run in runs:
        assert {f"test/{name}" for name in ORDERED_METRICS} <= set(run.data.metrics), run.info.run_name
    trained = [run for run in runs if "best/accuracy" in run.data.metrics]
    assert all({f"best/{name}" for name in ORDERED_METRICS} <= set(run.data.metrics) for run in trained)
    one = trained[0]
    folder = next(folder for folder in (tmp_path / "runs").iterdir() if one.data.tags["identity"] in folder.name)
    code, output, errors = command_line("evaluate", f"run={one.info.run_id}", *table, "data.splits.test=null", *record)
    assert code == 0, errors
    (evaluation,) = client.search_runs(["1"], "tags.evaluation != ''")
    assert evaluation.data.metrics["test/mae"] == pytest.approx(one.data.metrics["test/mae"], abs=1e-5)
    assert folder.is_dir()

    code, output, errors = command_line(
        "compare", "metric=mae", f"tracking.uri={store}", "output=report", "resamples=200"
    )
    assert code == 0, errors
    board = list(csv.DictReader((tmp_path / "report" / "leaderboard.csv").read_text().splitlines()))
    assert {"mae", "mae_low", "mae_high", "qwk", "within_one"} <= set(board[0])
    assert float(board[0]["mae"]) == pytest.approx(
        sum(run.data.metrics["test/mae"] for run in trained) / len(trained), abs=1e-5
    )
    assert "qwk" in (tmp_path / "report" / "report.html").read_text()
    code, output, errors = command_line("compare", f"tracking.uri={store}", "output=plain", "resamples=200")
    assert code == 0, errors
    assert "qwk" in (tmp_path / "plain" / "leaderboard.csv").read_text()


def test_numbers_in_a_row_are_proposed_as_ratings(table, tmp_path):
    (note,) = load_source(load_config(*table).data).notes
    assert note.startswith("The labels are the numbers from 1 to 5: if they are ratings, data.ordered=true")
    assert load_source(load_config(*table, "data.ordered=true").data).notes == []
    named = load_source(load_config(*table, "data.labels=['1','2','3','4','5']").data)
    assert len(named.notes) == 1
    mapped = "data.labels={1: bad, 2: bad, 3: null, 4: good, 5: good}"
    assert load_source(load_config(*table, mapped).data).notes == []
    (tmp_path / "stars.csv").write_text("text,label\na,1\nb,3\nc,5\n")
    assert load_source(load_config(*table).data).notes == []


def test_an_order_that_nobody_named_is_asked_for(table, tmp_path):
    (tmp_path / "stars.csv").write_text("text,label\na,low\nb,high\nc,middle\n")
    with pytest.raises(UserError, match=r"data.ordered=true needs the order of the classes, and high, low, middle are"):
        load_source(load_config(*table, "data.ordered=true").data)
    ordered = load_source(load_config(*table, "data.ordered=true", "data.labels=[low,middle,high]").data)
    assert ordered.labels == ["low", "middle", "high"]


def test_what_only_ordered_classes_have_selects_no_other_run(table):
    with pytest.raises(UserError, match=r"trainer.monitor=validation/qwk measures classes .* data.ordered=true"):
        load_config(*table, "trainer.monitor=validation/qwk")
    assert load_config(*table, "trainer.monitor=validation/qwk", "data.ordered=true")
