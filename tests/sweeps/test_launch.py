"""Launching: ends that come back by the launcher or could not be recorded, and Ray clusters that are running."""

import math

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from sentexp.sweeps import launch
from sentexp.sweeps.sweep_dir import Outcome, State, SweepFolder


def test_ends_on_machines_without_the_folder_come_by_the_launcher(tmp_path, config, capsys):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(1, "validation/accuracy", None)
    returned = JobReturn()
    returned._return_value = Outcome(name="a", state=State.finished, objective=0.5, metrics={"seconds": 2.0})
    job = launch.Job(number=0, overrides=[], config=config())
    launch.note([job], [returned], folder)
    assert folder.outcomes()[0].objective == 0.5
    assert "1/1 | a | validation/accuracy 0.5000, 2 s" in capsys.readouterr().out


def test_an_end_that_a_full_disk_had_no_room_for_is_a_failure(tmp_path, config, capsys):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(1, "validation/accuracy", None)
    returned = JobReturn()
    returned._return_value = math.nan  # the command line has printed a sentence
    launch.note([launch.Job(number=0, overrides=[], config=config("sweep.name=a"))], [returned], folder)
    assert (folder.outcomes()[0].name, folder.outcomes()[0].state) == ("a", State.failed)
    assert folder.outcomes()[0].error == "its end could not be recorded"


def test_a_ray_cluster_that_runs_is_given_the_store_and_asked_for_no_memory(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    settings = OmegaConf.create({"hydra": {"launcher": {"ray": {"init": {"address": "auto"}}}}})
    launch.fit_to_cluster(settings)
    assert settings.hydra.launcher.ray.init == {
        "address": "auto",
        "object_store_memory": None,
        "runtime_env": {"env_vars": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}},
    }
