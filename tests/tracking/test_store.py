"""The MLflow store: what a run records, how it ends, and stores that cannot be used (laws 1 and 7)."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.run import fitting
from sentexp.run.train import train
from sentexp.tracking import client as client_module
from sentexp.tracking.client import connect, is_disk_full
from sentexp.tracking.run_logger import open_run_logger
from sentexp.tracking.store import open_store, store_uri

RECORDED = ("tracking=mlflow", "tracking.system_metrics=false")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, reviews):
    folder = tmp_path_factory.mktemp("recorded")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    config = load_config(
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation", "data.splits.test=test",
        "trainer.progress_bar=false", "trainer.log_every_n_steps=1", "trainer.batch_size=8", "trainer.max_epochs=2",
        f"output_dir={folder / 'outputs'}", f"tracking.uri={uri}",
    )  # fmt: skip
    result = train(config)
    client = MlflowClient(uri)
    return result, client, client.get_run(result.run_id), folder


def test_the_default_store_is_sqlite_here_and_the_environment_names_another(monkeypatch):
    tracking = load_config().tracking
    assert store_uri(tracking) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store_uri(tracking) == "http://127.0.0.1:1"
    assert store_uri(load_config("tracking.uri=sqlite:////tmp/x.db").tracking) == "sqlite:////tmp/x.db"


def test_a_run_is_finished_and_never_the_global_active_run(recorded):
    _, _, run, _ = recorded
    assert run.info.status == "FINISHED"
    assert mlflow.active_run() is None
    assert mlflow.last_active_run() is None


def test_metrics_are_recorded_by_step(recorded):
    result, client, run, _ = recorded
    assert [point.step for point in client.get_metric_history(result.run_id, "train/loss")] == list(range(1, 9))
    assert [point.step for point in client.get_metric_history(result.run_id, "validation/accuracy")] == [4, 8]
    assert run.data.metrics["test/accuracy"] == result.metrics["test/accuracy"]
    for name in ("best/accuracy", "peak_memory_gib", "parameters/trainable", "parameters/total", "seconds"):
        assert name in run.data.metrics, name


def test_parameters_tags_and_data_are_recorded(recorded):
    result, _, run, _ = recorded
    assert run.data.params["peft.r"] == "16"
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.params["precision"] in ("fp32", "bf16")
    assert run.data.tags["identity"] == result.identity
    assert run.data.tags["version.torch"]
    assert run.data.tags["machine.cpu"]
    assert run.data.tags["command"].startswith("python -m sentexp")
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name.startswith("reviews")  # the folder that was given, not the option
    assert len(used.dataset.digest) == 36
    assert json.loads(used.dataset.profile)["rows"]["train"] == {"negative": 16, "positive": 16}


def test_the_whole_configuration_is_an_artifact_though_parameters_are_cut(config, store):
    template = "x" * 900 + "{text}"
    result = train(
        config("peft=head", *RECORDED, f"tracking.uri={store}", f"task.template='{template}'", "data.max_length=1100")
    )
    client = MlflowClient(store)
    assert len(client.get_run(result.run_id).data.params["task.template"]) == 500
    assert template in Path(client.download_artifacts(result.run_id, "config.yaml")).read_text().replace("\n    ", "")


def test_the_adapter_and_the_pictures_are_artifacts(recorded):
    result, client, _, _ = recorded
    names = {item.path for item in client.list_artifacts(result.run_id)}
    assert {
        "adapter",
        "config.yaml",
        "environment.json",
        "result.json",
        "learning_curve.png",
        "confusion_matrix.png",
    } <= names
    adapter = {item.path for item in client.list_artifacts(result.run_id, "adapter")}
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/sentexp.json"} <= adapter
    assert not any(name.endswith((".bin", ".pt", ".ckpt", ".pkl")) for name in adapter)


@pytest.mark.slow
def test_system_metrics_are_recorded_over_time(recorded, monkeypatch, config, store):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    result = train(config("peft=lora", "tracking=mlflow", f"tracking.uri={store}", "trainer.max_epochs=8"))
    metrics = MlflowClient(store).get_run(result.run_id).data.metrics
    assert any(name.startswith("system/") for name in metrics)


def test_a_failed_run_is_failed_with_its_traceback(config, store, monkeypatch):
    def broken(*_):
        raise RuntimeError("the roof fell in")

    monkeypatch.setattr(fitting, "fit", broken)
    with pytest.raises(RuntimeError):
        train(config(*RECORDED, f"tracking.uri={store}"))
    (run,) = MlflowClient(store).search_runs(["1"])
    assert run.info.status == "FAILED"
    text = Path(MlflowClient(store).download_artifacts(run.info.run_id, "traceback.txt")).read_text()
    assert "the roof fell in" in text
    assert "recording.py" in text


def test_an_interrupted_run_is_killed_and_the_same_command_goes_on_with_it(config, store, monkeypatch):
    settings = config(*RECORDED, f"tracking.uri={store}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "save_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(settings)
    (run,) = MlflowClient(store).search_runs(["1"])
    assert run.info.status == "KILLED"
    result = train(settings)
    (run,) = MlflowClient(store).search_runs(["1"])
    assert run.info.run_id == result.run_id
    assert run.info.status == "FINISHED"


def test_a_password_in_the_uri_is_not_recorded(config, monkeypatch, tmp_path):
    settings = config("tracking.uri=http://me:secret@127.0.0.1:1")
    train(settings)  # tracking=none: the configuration is written to the run's folder only
    assert "secret" not in next((tmp_path / "outputs").glob("*/config.yaml")).read_text()


@pytest.fixture
def impatient(monkeypatch):
    """Let a store that is locked be given up soon: MLflow lets SQLite wait for 20 seconds at each try."""
    monkeypatch.setattr(client_module, "PATIENCE", 1.0)
    waits = []

    def shorten(connection, cursor, statement, parameters, *_):
        if "busy_timeout" in statement:
            waits.append(statement)
            statement = "PRAGMA busy_timeout = 100"
        return statement, parameters

    event.listen(Engine, "before_cursor_execute", shorten, retval=True)
    yield waits
    event.remove(Engine, "before_cursor_execute", shorten)


def test_a_locked_store_is_named(store, impatient):
    file = store.removeprefix("sqlite:///")
    open_run_logger(load_config(f"tracking.uri={store}", *RECORDED).tracking, "first", None).finish("FINISHED")
    holder = sqlite3.connect(file)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(
            UserError, match=r"The MLflow store sqlite:.* is locked by another process: end that process"
        ):
            open_run_logger(load_config(f"tracking.uri={store}", *RECORDED).tracking, "second", None)
    finally:
        holder.rollback()
        holder.close()
    assert impatient


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0])
def test_a_kill_in_the_making_of_a_store_leaves_none_or_a_whole_one(seconds, tmp_path, command_environment):
    code = f"""
import os, threading
from mlflow.store.db import utils
upgrade = utils._upgrade_db
def killed(engine):
    threading.Timer({seconds}, lambda: os.kill(os.getpid(), 9)).start()
    upgrade(engine)
utils._upgrade_db = killed
from sentexp.config import load_config
from sentexp.tracking.store import open_store
open_store(load_config("tracking.uri=sqlite:///{tmp_path / "mlflow.db"}").tracking)
"""
    subprocess.run([sys.executable, "-c", code], env=command_environment, capture_output=True, check=False)
    open_run_logger(load_config(f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", *RECORDED).tracking, "x", None)


def test_a_row_that_another_process_was_faster_with_is_written_again(store):
    client = open_store(load_config(f"tracking.uri={store}").tracking).client
    answers = iter([IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed: datasets.name")), "there"])

    def insert():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert client._call(insert) == "there"


@pytest.mark.slow
def test_a_store_of_another_mlflow_is_named(store, command_environment):
    file = store.removeprefix("sqlite:///")
    open_run_logger(load_config(f"tracking.uri={store}", *RECORDED).tracking, "first", None).finish("FINISHED")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'fffffffffffe'")
    database.close()
    # MLflow checks a store once per process, so another process must meet it.
    code = f"""
from sentexp.config import load_config
from sentexp.tracking.run_logger import open_run_logger
open_run_logger(load_config("tracking.uri={store}").tracking, "second", None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment, capture_output=True, text=True, check=False
    )
    assert "UserError: The MLflow store" in done.stderr
    assert "was written by another version of MLflow: install that version" in done.stderr


def test_a_store_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"The MLflow store http://me:\*\*\*@127.0.0.1:1 cannot be used"):
        open_run_logger(load_config("tracking.uri=http://me:pw@127.0.0.1:1", *RECORDED).tracking, "x", None)
    with pytest.raises(UserError, match="cannot be used"):
        open_run_logger(load_config("tracking.uri=sqlite:////proc/no/mlflow.db", *RECORDED).tracking, "x", None)


def test_a_server_that_does_not_answer_is_named_at_once(monkeypatch):
    from mlflow import MlflowClient as Client

    monkeypatch.setattr("mlflow.MlflowClient", lambda *_, **__: pytest.fail("MLflow asks it for minutes"))
    for name in client_module.OWN_PATIENCE:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as silent:  # accepts connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(client_module, "ANSWERS_WITHIN", (0.2, 0.2))
        for address, why in (
            (f"127.0.0.1:{silent.getsockname()[1]}", "ReadTimeout"),
            ("127.0.0.1:2", "ConnectionError"),
        ):
            with pytest.raises(
                UserError, match=rf"The MLflow server http://me:\*\*\*@{address} does not answer \({why}\)"
            ):
                connect(f"http://me:pw@{address}")
        monkeypatch.setattr("mlflow.MlflowClient", Client)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # then MLflow's own settings hold
        connect("http://127.0.0.1:1/waiting")


def test_a_deleted_experiment_is_named(store):
    settings = load_config(f"tracking.uri={store}", *RECORDED).tracking
    open_run_logger(settings, "first", None).finish("FINISHED")
    MlflowClient(store).delete_experiment("1")
    with pytest.raises(UserError, match=r"tracking.experiment=sentexp was deleted"):
        open_run_logger(settings, "second", None)


def test_a_full_disk_is_recognised_from_any_library():
    assert is_disk_full(OSError(28, "No space left on device"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(2, os.strerror(2)))
