"""`python -m sentexp runs`: every run, its identity, state and result."""

import json
import re
from pathlib import Path

import pytest
from filelock import FileLock

from sentexp.cli import list_runs
from sentexp.cli.list_runs import runs
from sentexp.run import fitting
from sentexp.run.train import train
from sentexp.tracking.run_logger import open_run_logger
from sentexp.tracking.sqlite_reader import SqliteReader
from sentexp.tracking.store import open_store

RECORDED = ("tracking=mlflow", "tracking.system_metrics=false", "baseline=false")


def interrupt(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "save_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(config)


@pytest.fixture(params=["mlflow", "none"])
def tracked(request, store):
    return (*RECORDED, f"tracking.uri={store}") if request.param == "mlflow" else ("tracking=none", "baseline=false")


def test_every_run_is_listed_with_its_state_and_result(config, tracked, monkeypatch, capsys):
    result = train(config(*tracked))
    interrupt(config(*tracked, "seed=2"), monkeypatch)
    capsys.readouterr()
    runs(config(*tracked))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(lines) == 2
    (finished,) = [line for line in lines if "finished" in line]
    assert result.identity in finished
    assert f"{result.metrics['test/accuracy']:.4f}" in finished
    assert any(state in line for line in lines for state in ("killed", "interrupted"))


def test_a_run_that_another_process_is_at_is_running(config, monkeypatch, capsys):
    settings = config("tracking=none")
    interrupt(settings, monkeypatch)
    (state,) = list(Path(settings.output_dir).glob("*/state.json"))
    assert json.loads(state.read_text())["identity"] == state.parent.name
    with FileLock(state.parent / ".lock"):
        runs(settings)
    assert "running" in capsys.readouterr().out
    runs(settings)
    assert "interrupted" in capsys.readouterr().out


def test_a_folder_of_a_baseline_is_no_run(config, capsys):
    settings = config("tracking=none")
    folder = Path(settings.output_dir) / "baseline-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"test/accuracy": 0.5}')
    runs(settings)
    assert "No runs in" in capsys.readouterr().out


def test_many_runs_are_read_and_printed_a_part_at_a_time(config, store, monkeypatch, capsys):
    settings, read, printed = config(*RECORDED, f"tracking.uri={store}"), [], []
    for number in range(5):
        found = open_run_logger(settings.tracking, f"r={number}", None, {"identity": f"{number:016x}"})
        found.finish("FINISHED")
    open_run_logger(settings.tracking, "sweep", None, {"sweep.identity": "a sweep"}).finish("FINISHED")
    monkeypatch.setattr(list_runs, "BLOCK", 2)
    opened = open_store(settings.tracking)
    look, show, walk = SqliteReader._runs, list_runs.OUT.print, opened.walk
    monkeypatch.setattr(opened, "walk", lambda *words: walk(*words, page=2))
    monkeypatch.setattr(SqliteReader, "_runs", lambda *words: read.append(1) or look(*words))
    monkeypatch.setattr(list_runs.OUT, "print", lambda *words: printed.append(len(read)) or show(*words))
    runs(settings)
    assert printed == [1, 2, 3]
    out = capsys.readouterr().out
    titles = [line.partition(" in ")[0] for line in out.splitlines() if line.startswith("runs ")]
    assert titles == ["runs 1 to 2", "runs 3 to 4", "runs 5 to 5"]
    assert re.findall("000000000000000[0-9]", out) == [f"{number:016x}" for number in range(5)]


def test_a_store_without_runs_says_so(config, store, capsys):
    runs(config(*RECORDED, f"tracking.uri={store}"))
    assert "No runs in experiment sentexp of sqlite:" in capsys.readouterr().out
