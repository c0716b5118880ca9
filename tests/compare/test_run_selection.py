"""Which runs are compared: of a sweep, by ids, by experiment, by filter; and what is said where there are none."""

import json
from types import SimpleNamespace

import pytest

from sentexp.compare.run_selection import select, settings_of
from sentexp.config import TrackingBackend, TrackingConfig, from_conf
from sentexp.errors import UserError
from sentexp.tracking.run_logger import open_run_logger


def names(selection):
    return [run.info.run_name for run in selection.runs]


@pytest.fixture
def later(store, record):
    """Return the id of a later sweep, which has skipped a run of an earlier one, and its own run."""

    def begin(skipped, tmp_path):
        tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=store, system_metrics=False)
        parent = open_run_logger(tracking, "later", None, {"sweep.identity": "another"})
        own = record("own", 1.5, parent=parent.run_id)
        (tmp_path / "runs.json").write_text(json.dumps([{"run_id": skipped}, {"run_id": own}, {"run_id": None}]))
        parent.log_files(tmp_path / "runs.json")
        parent.finish("FINISHED")
        return parent.run_id

    return begin


def test_the_latest_sweep_is_the_default_and_unfinished_runs_are_reported(sweep, record, comparing):
    record("alone")
    found = select(comparing())
    assert names(found) == ["r=2 seed=1", "r=2 seed=2", "r=4 seed=1", "r=4 seed=2", "r=8 seed=1"]
    assert found.parent.info.run_id == sweep
    assert "1 of 6 runs did not finish and are left out: r=8 seed=2" in found.left_out


def test_a_sweep_by_id_or_name_and_the_runs_that_it_skipped(sweep, later, record, comparing, tmp_path):
    skipped = record("skipped")
    latest = later(skipped, tmp_path)
    assert sorted(names(select(comparing()))) == ["own", "skipped"]
    assert select(comparing()).parent.info.run_id == latest
    for wanted in (sweep, sweep[:8], "sweep r=2,4,8 seed=1,2"):
        assert select(comparing(sweep=wanted)).parent.info.run_id == sweep


def test_runs_by_id_identity_or_name_in_the_order_they_are_given(sweep, record, comparing):
    first, second = record("alone"), record("another", 2.0)
    found = select(comparing(runs=[second[:10], "alone", first, first[:8]]))
    assert names(found) == ["another", "alone"], "a run counts once, however often it is named"
    assert found.title == "2 runs"


def test_an_experiment_holds_runs_and_no_sweeps_or_baselines(sweep, record, comparing):
    record("alone", tags={"baseline": "tfidf"})
    found = select(comparing(experiment_name="sentexp"))
    assert len(found.runs) == 5
    assert found.parent is None


def test_runs_are_named_by_identity_its_beginning_or_their_name(record, comparing):
    record("r=8", tags={"identity": "wxyz456789abcdef"})
    record("r=4", tags={"identity": "wxyzffffffffffff"})
    assert names(select(comparing(runs=["wxyz456789abcdef", "wxyzf"]))) == ["r=8", "r=4"]
    found = select(comparing(runs=["r=4"]))
    assert names(found) == ["r=4"]
    assert found.title == "1 run"
    for short in ("wxyz", "wxy"):
        with pytest.raises(UserError, match=f"runs={short} is (2 runs|not a run) in .*: give 4 letters or more of an"):
            select(comparing(runs=[short]))


def test_a_filter_is_mlflows(sweep, comparing):
    found = select(comparing(filter="params.`peft.r` = '4'"))
    assert names(found) == ["r=4 seed=1", "r=4 seed=2"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sweep": "missing"}, "sweep=missing is not a sweep in experiment sentexp of sqlite:"),
        ({"runs": ["missing"]}, "runs=missing is not a run in experiment sentexp"),
        ({"runs": ["r=8 seed=2"]}, "is FAILED, so it has no predictions: give the command of that run again"),
        ({"experiment_name": "elsewhere"}, "There is no experiment elsewhere of sqlite:"),
        ({"filter": "nonsense ="}, "filter=nonsense = is not a filter that MLflow can search"),
        ({"filter": "params.`peft.r` = '99'"}, "has no finished run"),
    ],
)
def test_what_is_not_there_is_one_sentence(sweep, comparing, keys, said):
    with pytest.raises(UserError) as told:
        select(comparing(**keys))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_an_empty_store_and_a_missing_one(store, comparing, tmp_path):
    with pytest.raises(UserError, match="There is no experiment sentexp of"):
        select(comparing())
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=f"sqlite:///{tmp_path / 'missing.db'}")
    settings = comparing()
    settings.tracking = tracking
    with pytest.raises(UserError, match="There is no experiment sentexp of"):
        select(settings)
    assert not (tmp_path / "missing.db").exists()


def test_runs_without_a_sweep_say_what_to_give(record, comparing):
    record("alone")
    with pytest.raises(UserError, match="holds no sweep: start one with --multirun, or give runs="):
        select(comparing())


def test_runs_of_earlier_releases_have_the_settings_of_later_ones():
    def settings(**params):
        return settings_of(SimpleNamespace(data=SimpleNamespace(params=params)))

    earlier = {"data.name": "csv", "peft.r": "8", "seed": "1"}
    later = earlier | {"data.ordered": "False", "data.text_pair": "None", "data.columns": "[]"}
    assert settings(**earlier) == settings(**later) == {"data.name": "csv", "peft.r": "8"}
    assert settings(**later | {"data.ordered": "True"})["data.ordered"] == "True"
