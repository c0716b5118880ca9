"""The view that MLflow's UI opens with: the columns that tell runs from each other, the best run on top."""

import json

import pytest
from mlflow import MlflowClient

from sentexp.config import TrackingConfig, from_conf
from sentexp.errors import UserError
from sentexp.tracking.store import PARENT, open_store
from sentexp.tracking.ui_view import TAG, experiment_view, view_of


@pytest.fixture
def opened(store):
    """Return the store of an experiment without runs."""
    return open_store(from_conf(TrackingConfig, uri=store))


@pytest.fixture
def sweep(opened):
    """Return a function that records a sweep with these parameters, and runs with these."""

    def record(given, runs):
        client = MlflowClient(opened.uri)
        parent = client.create_run(opened.experiment, tags={"sweep.identity": "1"}).info.run_id
        for key, value in given.items():
            client.log_param(parent, key, value)
        for params in runs:
            run = client.create_run(opened.experiment, tags={PARENT: parent}).info.run_id
            for key, value in params.items():
                client.log_param(run, key, value)

    return record


def test_without_a_sweep_the_columns_are_metrics(opened):
    view = view_of(opened)
    assert view["selectedColumns"][0] == "metrics.`best/accuracy`"
    assert all(column.startswith("metrics.`") for column in view["selectedColumns"])
    assert view["orderByAsc"] is False


def test_the_swept_keys_of_the_latest_sweep_come_first(opened, sweep):
    sweep({"seed": "1,2"}, [{"seed": "1"}, {"seed": "2"}])
    given = {"peft.r": "4,8", "model": "tiny,gpt2", "data.path": "[a,b]", "optim.lr": "1e-3"}
    same = {"data.path": "[a,b]", "optim.lr": "1e-3", "trainer.monitor": "validation/loss", "task": "seq_cls"}
    sweep(given, [same | {"peft.r": "4", "model.name": "tiny"}, same | {"peft.r": "8", "model.name": "gpt2"}])
    view = view_of(opened)
    assert view["selectedColumns"][:3] == ["params.`peft.r`", "params.`model.name`", "metrics.`best/loss`"]
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best/loss`", True)
    assert view["columnOrder"] == list(view["columnWidths"]) == view["selectedColumns"]


def test_the_tag_has_the_forms_of_old_and_new_releases(opened):
    page = experiment_view(opened)
    assert page == f"/#/experiments/{opened.experiment}/runs?workflowType=machine_learning&viewStateShareKey=sentexp"
    tag = json.loads(MlflowClient(opened.uri).get_experiment(opened.experiment).tags[TAG])
    state = json.loads(tag["state"])
    assert state == view_of(opened)
    assert state.items() <= tag.items()
    assert isinstance(tag["name"], str)
    assert isinstance(tag["createdAt"], int)


def test_a_store_that_may_only_be_read_is_shown_as_it_is(opened, monkeypatch):
    def refuse(*_):
        raise UserError("read only")

    monkeypatch.setattr(opened.client, "set_experiment_tag", refuse, raising=False)
    assert experiment_view(opened) == f"/#/experiments/{opened.experiment}/runs?workflowType=machine_learning"
