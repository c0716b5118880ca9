"""Sweeps on a SLURM of one node, which `make clusters` brings up, and on a Ray cluster of two raylets."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from sentexp.tracking.store import PARENT

pytestmark = pytest.mark.slow


@pytest.fixture
def slurm():
    """Skip where no SLURM answers."""
    if (
        shutil.which("sinfo") is None
        or subprocess.run(["sinfo"], capture_output=True, check=False, timeout=30).returncode
    ):
        pytest.skip("needs a SLURM: make clusters brings one up")
    yield ["hydra/launcher=submitit_slurm"]
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=False, timeout=30)


@pytest.fixture
def start(reviews, command_environment, tmp_path):
    """Return a function that starts a sweep of quick runs, and one that returns its console."""
    quick = [
        "--multirun", "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.progress_bar=false", "trainer.batch_size=8", "trainer.precision=fp32",
        "tracking.system_metrics=false", "baseline=false", "trainer.accelerator=cpu",
    ]  # fmt: skip

    def begin(*words, **variables):
        with (tmp_path / "console.txt").open("a") as console:
            return subprocess.Popen(
                [sys.executable, "-m", "sentexp", *quick, *words],
                cwd=tmp_path, env=command_environment | variables, stdout=console, stderr=console,
            )  # fmt: skip

    return begin


def console(tmp_path):
    return (tmp_path / "console.txt").read_text()


def wait_for(found, process, tmp_path):
    """Return what is found, once it is."""
    while not (value := found()):
        assert process.poll() is None, console(tmp_path)
        time.sleep(0.1)
    return value


def outcomes(tmp_path):
    """Return the ends of the runs of the last sweep."""
    last = max(tmp_path.glob("multirun/*/*/runs.json"), key=lambda file: file.stat().st_mtime)
    return json.loads(last.read_text())


def assert_finished(tmp_path, count):
    """Check that each run is finished, once, in MLflow and in the table."""
    assert [run["state"] for run in outcomes(tmp_path)] == ["finished"] * count
    runs = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    (parent,) = [run for run in runs if "sweep.identity" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert [run.info.status for run in runs] == ["FINISHED"] * (count + 1)
    assert all(run.data.tags[PARENT] == parent.info.run_id for run in children)
    assert len({run.data.tags["identity"] for run in children}) == len(children) == count
    assert console(tmp_path).count("validation/accuracy 0") >= count
    return children


def queued():
    """Return the numbers of the jobs that run."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def checkpoints(tmp_path):
    return list(tmp_path.glob("outputs/*/last.ckpt"))


def test_a_job_is_a_group_of_runs_with_the_numbers_of_a_run_alone(slurm, start, tmp_path):
    words = ["seed=1,2,3", "peft=full"]  # follow each other in their job: bit by bit those of a run alone
    assert start(*words, *slurm, "hydra.launcher.runs_per_job=2").wait() == 0, console(tmp_path)
    assert_finished(tmp_path, 3)
    assert "Submitted 2 jobs of SLURM" in console(tmp_path)
    lines = [line for line in console(tmp_path).splitlines() if " | seed=" in line]
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert (
        start(*words, "hydra/launcher=sequential", "output_dir=alone", f"tracking.uri=sqlite:///{alone}/a.db").wait()
        == 0
    )
    numbers = [{run["identity"]: run["objective"] for run in outcomes(tmp_path)}]
    first = min(tmp_path.glob("multirun/*/*/runs.json"), key=lambda file: file.stat().st_mtime)
    numbers.append({run["identity"]: run["objective"] for run in json.loads(first.read_text())})
    assert numbers[0] == numbers[1]


def test_runs_of_a_job_train_together(slurm, start, tmp_path):
    words = ["peft.r=2,4,8,16", *slurm, "hydra.launcher.runs_per_job=auto"]
    assert start(*words).wait() == 0, console(tmp_path)
    assert_finished(tmp_path, 4)
    assert "Submitted 1 job of SLURM" in console(tmp_path)


def test_a_run_of_several_processes_is_a_job(slurm, start, tmp_path):
    words = ["seed=1,2", "trainer=ddp", *slurm, "hydra.launcher.tasks_per_node=2"]
    assert start(*words, GLOO_SOCKET_IFNAME="lo").wait() == 0, console(tmp_path)
    assert {run.data.tags["processes"] for run in assert_finished(tmp_path, 2)} == {"2"}


LONG = ["trainer.max_epochs=150", "trainer.eval_steps=10000"]


@pytest.mark.parametrize("accounting", [True, False])
def test_a_job_that_is_cancelled_is_done_again(slurm, start, tmp_path, accounting):
    (tmp_path / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    (tmp_path / "sacct").chmod(0o755)
    variables = {} if accounting else {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = start("seed=1", *LONG, "trainer.save_steps=5", *slurm, **variables)
    wait_for(lambda: checkpoints(tmp_path), process, tmp_path)
    subprocess.run(["scancel", *queued()], check=True)
    assert process.wait() == 0, console(tmp_path)
    assert_finished(tmp_path, 1)
    assert "has left the queue without a result (cancelled" in console(tmp_path)
    assert "sent once more" in console(tmp_path)


def test_a_job_that_is_warned_of_its_limit_saves_is_queued_again_and_continues(slurm, start, tmp_path):
    limits = ["hydra.launcher.timeout_min=10"]
    process = start(
        "seed=1,2",
        LONG[1],
        "trainer.max_epochs=60",
        "trainer.save_steps=100000",
        *slurm,
        *limits,
        "hydra.launcher.runs_per_job=2",
    )
    number = wait_for(queued, process, tmp_path)[0]
    wait_for(lambda: list(tmp_path.glob("outputs/*/state.json")), process, tmp_path)
    time.sleep(2)
    subprocess.run(["scancel", "--signal=USR2", number], check=True)  # what SLURM sends before the end
    wait_for(lambda: len(checkpoints(tmp_path)) == 2 or not queued(), process, tmp_path)
    saved = len(checkpoints(tmp_path))
    assert process.wait() == 0, console(tmp_path)
    assert_finished(tmp_path, 2)
    log = next(tmp_path.glob("multirun/*/*/.submitit/*/*.err")).read_text()
    assert "DUE TO JOB REQUEUE" in log
    assert saved > 0
    assert "Resuming run" in "".join(file.read_text() for file in tmp_path.glob("multirun/*/*/*/run.log"))


def test_a_partition_that_does_not_exist_is_refused_in_the_words_of_sbatch(slurm, start, tmp_path):
    assert start("seed=1,2", *slurm, "hydra.launcher.partition=nowhere").wait() == 1
    said = [line for line in console(tmp_path).splitlines() if "nvalid partition" in line]
    assert said == [
        "sentexp: SLURM does not take the jobs: Batch job submission failed: Invalid partition name specified"
    ]


@pytest.fixture
def raylets(command_environment, free_port):
    """Start a Ray cluster of two raylets; return the words that choose it, its token, and its processes."""
    ray, port = str(Path(sys.executable).with_name("ray")), free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    common = [ray, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats"]
    processes = []
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as folder:  # the names of Ray's sockets must be short
        head = [f"--port={port}", "--head", "--include-dashboard=false", f"--temp-dir={folder}"]
        for words in (head, [f"--address=127.0.0.1:{port}"]):
            log = Path(folder) / f"console{len(processes)}.txt"
            with log.open("w") as out:
                processes.append(
                    subprocess.Popen([*common, *words], env=command_environment | token, stdout=out, stderr=out)
                )
            while "Ray runtime started" not in log.read_text():
                assert processes[-1].poll() is None, log.read_text()
                time.sleep(0.2)
        yield ["hydra/launcher=ray", f"hydra.launcher.ray.init.address=127.0.0.1:{port}"], token, processes
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def test_a_raylet_that_is_killed_costs_no_run(raylets, start, tmp_path):
    words, token, processes = raylets
    process = start("seed=1,2,3", *LONG[1:], "trainer.max_epochs=60", "trainer.save_steps=5", *words, **token)
    wait_for(lambda: len(checkpoints(tmp_path)) == 2, process, tmp_path)
    (raylet,) = [each for each in psutil.Process(processes[1].pid).children() if each.name() == "raylet"]
    raylet.kill()
    assert process.wait() == 0, console(tmp_path)
    assert_finished(tmp_path, 3)
    lines = [line for line in console(tmp_path).splitlines() if "/3 | " in line]
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"]


def test_a_missing_token_is_named_and_no_run_counts_as_tried(raylets, start, tmp_path):
    words, token, _ = raylets
    assert start("seed=1,2", *words).wait() == 1
    (line,) = console(tmp_path).splitlines()
    assert "the cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
    assert not (tmp_path / "multirun").exists()
    assert start("seed=1,2", *words, "hydra.launcher.runs_per_job=auto", **token).wait() == 0, console(tmp_path)
    assert_finished(tmp_path, 2)
