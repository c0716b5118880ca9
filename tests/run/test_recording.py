"""How the record of a run ends."""

import signal

import pytest
from encoders import write_encoder
from mlflow import MlflowClient

from sentexp.errors import UserError
from sentexp.run import metric_sinks
from sentexp.run import train as training
from sentexp.run.metric_sinks import MetricSinks
from sentexp.run.recording import track_run
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import RunLogger


class Terminated(BaseException):
    """SIGTERM."""


@pytest.fixture
def ended():
    """How the record was ended, in order."""
    return []


@pytest.fixture
def logger(ended, monkeypatch):
    """Return a record that notes how it is ended; SIGTERM comes while the traceback is written."""

    def log_text(text, name):
        signal.raise_signal(signal.SIGTERM)
        ended.append((name, text.splitlines()[-1]))

    logger = RunLogger()
    monkeypatch.setattr(logger, "log_text", log_text)
    monkeypatch.setattr(logger, "finish", ended.append)
    return logger


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("the roof fell in"), "FAILED"), (KeyboardInterrupt("enough"), "KILLED")]
)
def test_a_launcher_that_ends_the_rest_of_a_run_leaves_no_half_record(error, status, logger, ended):
    def end(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Terminated), track_run(logger):
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [("traceback.txt", f"{type(error).__name__}: {error}"), status]


@pytest.fixture
def no_clock(monkeypatch):
    """Let no time pass that would send metrics by itself."""
    monkeypatch.setattr(metric_sinks, "SECONDS_BETWEEN_WRITES", float("inf"))


@pytest.fixture
def written(logger, monkeypatch):
    """The steps of the metrics that were sent, a list for each transaction."""
    transactions = []
    monkeypatch.setattr(
        logger, "log_measurements", lambda rows: transactions.append([row.step for row in rows]) if rows else None
    )
    return transactions


def test_metrics_are_sent_together(logger, written, tmp_path, no_clock):
    with RunDir(tmp_path / "run") as run_dir, MetricSinks(logger, run_dir) as sinks:
        sinks.log_metrics({"train/loss": 3.0}, 1)
        sinks.log_metrics({"train/loss": 2.0}, 2)
        assert written == []
        assert len((run_dir.path / "metrics.jsonl").read_text().splitlines()) == 2, "the folder has them at once"
        sinks.flush()
        sinks.log_metrics({"train/loss": 1.0}, 3)
        assert written == [[1, 2], [3]], "what follows a checkpoint is sent at once"
        sinks.log_metrics({"train/loss": 1.0}, 4)
    assert written == [[1, 2], [3], [4]]


def test_metrics_do_not_wait_long(logger, written, tmp_path, monkeypatch):
    monkeypatch.setattr(metric_sinks, "SECONDS_BETWEEN_WRITES", -1.0)
    with RunDir(tmp_path / "run") as run_dir, MetricSinks(logger, run_dir) as sinks:
        sinks.log_metrics({"train/loss": 3.0}, 1)
        sinks.log_metrics({"train/loss": 2.0}, 2)
        assert written == [[1], [2]]


@pytest.mark.parametrize("error", [RuntimeError("the roof fell in"), KeyboardInterrupt("enough")])
def test_a_training_that_fails_sends_its_metrics(error, logger, written, tmp_path, no_clock):
    with pytest.raises(type(error)), RunDir(tmp_path / "run") as run_dir, MetricSinks(logger, run_dir) as sinks:
        sinks.log_metrics({"train/loss": 3.0}, 1)
        raise error
    assert written == [[1]]


def test_a_store_that_fails_as_well_does_not_hide_the_first_error(logger, tmp_path, monkeypatch, capsys, no_clock):
    def refuse(rows):
        raise UserError("The store is locked.")

    monkeypatch.setattr(logger, "log_measurements", refuse)
    with RunDir(tmp_path / "run") as run_dir:
        with pytest.raises(RuntimeError, match="roof"), MetricSinks(logger, run_dir) as sinks:
            sinks.log_metrics({"train/loss": 3.0}, 1)
            raise RuntimeError("the roof fell in")
        assert "The last metrics could not be recorded" in capsys.readouterr().out
        with pytest.raises(UserError, match="locked"), MetricSinks(logger, run_dir) as sinks:
            sinks.log_metrics({"train/loss": 3.0}, 1)


@pytest.mark.slow
def test_mlflow_has_every_step_of_a_run_that_was_killed(
    train, words, store, tmp_path, monkeypatch, no_clock, interrupted_at
):
    recorded = ("tracking=mlflow", f"tracking.uri={store}", "trainer.save_steps=2", "baseline=false")
    with monkeypatch.context() as killed, interrupted_at(3):
        killed.setattr(MetricSinks, "__exit__", lambda *_: None)  # a kill sends nothing
        train(*recorded)
    result = train(*recorded)
    history = MlflowClient(store).get_metric_history(result.run_id, "train/loss")
    assert [row.step for row in history] == [1, 2, 3, 4]
    assert [row.timestamp for row in history] == sorted(row.timestamp for row in history)


def test_a_run_that_failed_early_has_one_record_though_its_template_is_left_open(config, store, tmp_path, monkeypatch):
    write_encoder(tmp_path / "bert", "bert")  # of a decoder the template that is left open is known beforehand
    words = (
        f"model.path={tmp_path / 'bert'}",
        "tracking=mlflow",
        f"tracking.uri={store}",
        "sweep.name=one",
        "task.template=auto",
        "trainer.max_steps=1",
        "baseline=false",
    )
    settings = config(*words)
    with monkeypatch.context() as patch:
        patch.setattr(training, "prepare_inputs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            training.train(settings)
    (failed,) = MlflowClient(store).search_runs(["1"])
    assert failed.info.status == "FAILED"
    assert training.train(settings).run_id == failed.info.run_id
