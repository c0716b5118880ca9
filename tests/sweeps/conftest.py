"""What the tests of sweeps share: the command line in this process, on the tiny model, and which runs it trained."""

import sys

import pytest

from sentexp import cli, experiment


@pytest.fixture
def quick(reviews, store):
    return [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.progress_bar=false", "trainer.batch_size=8", "trainer.precision=fp32",
        "tracking.system_metrics=false", "task.template='{text}'", "baseline=false", f"tracking.uri={store}",
    ]  # fmt: skip


@pytest.fixture
def sentexp(quick, tmp_path, monkeypatch, capsys):
    """Return a function that gives the command line these words in this process: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def command(*words):
        given = {word.partition("=")[0] for word in words}
        rest = [word for word in quick if word.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", ["sentexp", *words, *rest])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return command


@pytest.fixture
def trained(monkeypatch):
    """Return the list of runs that were really trained, by the name that the sweep gave them."""
    names = []
    original = experiment._attempt

    def attempt(materials, *rest):
        names.append(materials.config.sweep.name)
        return original(materials, *rest)

    monkeypatch.setattr(experiment, "_attempt", attempt)
    return names
