"""Runs are read from SQLite as MLflow's client has them, without MLflow, and through it where that cannot be."""

import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.tracking import store as store_module
from sentexp.tracking.sqlite_reader import SqliteReader, Wanted
from sentexp.tracking.store import Store, find_store

EACH = [
    Wanted(),
    Wanted(status="FINISHED"),
    Wanted(status="FINISHED", by_end=True),
    Wanted(tag="identity"),
    Wanted(tag="identity", value="b"),
    Wanted(tag="mlflow.parentRunId", value='it\'s "x"'),
    Wanted(status="FAILED", tag="identity", value="ab"),
    Wanted(name="r=1"),
    Wanted(oldest_first=True),
    Wanted(tag="identity", value_begins="b"),
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return the address of a store with runs of two experiments, one of them deleted, and its client."""
    folder = tmp_path_factory.mktemp("filled")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    one, other = (client.create_experiment(name, f"file://{folder}/of {name}") for name in ("sentexp", "other"))
    for number, (identity, status) in enumerate(
        [("ab", "FINISHED"), ("b", "FAILED"), ("b", "FINISHED"), ("", "KILLED")]
    ):
        run = client.create_run(one, start_time=1000 + number, run_name=f"r={number}", tags={"identity": identity})
        client.log_param(run.info.run_id, "peft.r", number)
        for step, value in enumerate([0.5, math.nan if number == 2 else 0.25, math.inf]):
            client.log_metric(run.info.run_id, f"m{step}", value, step=step)
        client.log_metric(run.info.run_id, "loss", 1.0, step=1)
        client.log_metric(run.info.run_id, "loss", 0.125 * number, step=2)
        client.set_terminated(run.info.run_id, status, end_time=9000 - number)
    client.set_tag(run.info.run_id, "mlflow.parentRunId", 'it\'s "x"')
    client.delete_run(client.create_run(one).info.run_id)
    client.create_run(other)
    return uri, client, one


def uri_file(uri):
    return Path(uri.removeprefix("sqlite:///"))


def plain(run):
    """Return what is read of a run, comparable: a value that is not a number equals itself."""
    names = ("run_id", "run_name", "status", "start_time", "end_time", "lifecycle_stage", "artifact_uri")
    data = {"tags": dict(run.data.tags), "params": dict(run.data.params), "metrics": dict(run.data.metrics)}
    return json.dumps({"info": [getattr(run.info, name) for name in names], "data": data}, sort_keys=True)


@pytest.mark.parametrize("wanted", [one for one in EACH if one.value is None or '"' not in one.value])
@pytest.mark.parametrize("page", [1, 3, 1000])
def test_runs_are_those_of_the_client(filled, wanted, page):
    uri, client, experiment = filled
    reader = SqliteReader(uri_file(uri))
    read = [run for runs in reader.walk(experiment, wanted, page) for run in runs]
    theirs = client.search_runs([experiment], wanted.as_filter(), order_by=wanted.as_order())
    assert [plain(run) for run in read] == [plain(run) for run in theirs]
    assert len(read) < 5


def test_runs_are_found_by_ids_and_by_what_these_begin_with(filled):
    uri, client, experiment = filled
    reader, ids = SqliteReader(uri_file(uri)), [run.info.run_id for run in client.search_runs([experiment])]
    for wanted in (
        Wanted(ids=(ids[2], ids[0])),
        Wanted(ids=()),
        Wanted(id_begins=ids[1][:16]),
        Wanted(id_begins=ids[1][4:20]),
    ):
        read = [run.info.run_id for runs in reader.walk(experiment, wanted, 10) for run in runs]
        begins = [one for one in ids if wanted.id_begins and one.startswith(wanted.id_begins)]
        assert read == ([ids[0], ids[2]] if wanted.ids else begins)
        theirs = [] if wanted.ids == () else client.search_runs([experiment], wanted.as_filter())
        assert [run.info.run_id for run in theirs] == read


def test_values_are_parameters_of_the_query(filled):
    reader = SqliteReader(uri_file(filled[0]))
    found = [run for runs in reader.walk(filled[2], EACH[5], 10) for run in runs]
    assert [run.info.run_name for run in found] == ["r=3"]


def test_a_run_is_that_of_the_client_deleted_or_not(filled):
    uri, client, experiment = filled
    reader, store = SqliteReader(uri_file(uri)), Store(uri, "sentexp")
    for run in client.search_runs([experiment], run_view_type=3):
        assert plain(reader.get_run(run.info.run_id)) == plain(run)
        assert (store.get_run(run.info.run_id) is None) == (run.info.lifecycle_stage == "deleted")
    assert reader.get_run("0" * 32) is None
    assert store.get_run("0" * 32) is None


def test_experiments_are_found_by_name(filled):
    reader = SqliteReader(uri_file(filled[0]))
    assert reader.experiment("sentexp") == (filled[2], "active")
    assert reader.experiment("none") is None


def test_reading_opens_no_mlflow(filled, command_environment):
    code = f"""
import sys
from sentexp.config import load_config
from sentexp.tracking.queries import find_sweeps, finished_runs
from sentexp.tracking.store import find_store
store = find_store(load_config("tracking.uri={filled[0]}").tracking)
print(len(store.search()), len(list(finished_runs(store))), len(find_sweeps(store)), "mlflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["4", "2", "0", "False"]


def test_what_cannot_be_read_is_asked_of_mlflow(filled, monkeypatch):
    def fails(*_):
        raise sqlite3.OperationalError("no such column: lifecycle_stage")

    monkeypatch.setattr(SqliteReader, "_rows", fails)
    store = find_store(load_config(f"tracking.uri={filled[0]}").tracking)
    assert [run.info.run_name for run in store.search()] == ["r=3", "r=2", "r=1", "r=0"]
    assert store.get_run(store.search()[0].info.run_id).info.run_name == "r=3"


def test_a_file_that_is_no_store_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_ask_for_experiment", lambda *_: pytest.fail("MLflow tries again for minutes"))
    (tmp_path / "mlflow.db").write_text("not a database, but text that is long enough to look at")
    with pytest.raises(UserError, match=r"The MLflow store sqlite:.* cannot be used"):
        find_store(load_config(f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}").tracking)


def test_artifacts_are_written_where_the_client_finds_them(filled, tmp_path):
    uri, client, experiment = filled
    (tmp_path / "report.html").write_text("<p>")
    store = Store(uri, "sentexp")
    run_id = client.search_runs([experiment])[0].info.run_id
    store.log_artifact(run_id, tmp_path / "report.html", "comparison")
    assert [one.path for one in client.list_artifacts(run_id, "comparison")] == ["comparison/report.html"]
    assert store.artifact(run_id, "comparison/report.html").read_text() == "<p>"
    assert store.artifact(run_id, "other.html") is None
