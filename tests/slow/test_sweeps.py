"""Sweeps that are killed, starved of disk and locked out end with every run finished once; launchers agree."""

import contextlib
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiers import exhaustive_but
from whole_sweeps import EPS, RATE, assert_alike, recorded, table

pytestmark = pytest.mark.slow

AXES = ["peft.r=2,4,8", "optim.lr=1e-3,2e-3,3e-3,4e-3"]


@pytest.fixture
def words(sweep_words):
    return sweep_words


def test_a_sweep_killed_five_times_ends_as_an_undisturbed_one(words, start, fork, tmp_path):
    axes, failing, code = ["peft.r=2,4,8", f"optim.lr=1e-3,2e-3,{RATE},1e30"], 3, 1  # a rate of 1e30 always fails
    axes += ["trainer.precision=fp32", f"optim.eps={EPS}", "trainer.monitor=validation/loss", "trainer.eval_steps=1000"]
    undisturbed = start(tmp_path / "undisturbed", *words, *axes)
    assert undisturbed.wait() == code
    seed = random.randrange(1 << 30)
    print(f"moments of the kills: random.Random({seed})")
    moments = random.Random(seed)
    for _ in range(5):
        process = fork(tmp_path / "killed", *words, *axes)
        time.sleep(moments.uniform(1, 8))
        process.kill()
        process.wait()
    assert fork(tmp_path / "killed", *words, *axes).wait() == code
    assert_alike(table(tmp_path / "killed"), table(tmp_path / "undisturbed"))
    for folder in ("undisturbed", "killed"):
        parent, children = recorded(tmp_path / folder)
        assert parent.info.status == "FAILED"
        states = sorted(run.info.status for run in children)
        assert states == ["FAILED"] * failing + ["FINISHED"] * (12 - failing)


def test_a_store_that_is_locked_for_30_seconds_holds_a_sweep_up_and_no_more(words, fork, tmp_path):
    process = fork(tmp_path / "locked", *words, "peft.r=2,4,8")
    file = tmp_path / "locked" / "mlflow.db"
    while not list(tmp_path.glob("locked/outputs/*")):
        assert process.poll() is None, (tmp_path / "locked" / "console.txt").read_text()
        time.sleep(0.02)
    holder = sqlite3.connect(file, timeout=60)
    holder.execute("BEGIN EXCLUSIVE")
    released = threading.Timer(30, lambda: None)
    released.start()
    released.join()
    holder.rollback()
    holder.close()
    assert process.wait() == 0, (tmp_path / "locked" / "console.txt").read_text()
    parent, children = recorded(tmp_path / "locked")
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 4


@pytest.fixture
def small_disk(tmp_path):
    """Return a disk of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("what", ["the store", "the runs"])
def test_a_full_disk_loses_nothing(what, words, fork, tmp_path, small_disk, soaked):
    folder, axes = tmp_path / "full", ["peft.r=2,4,8,16"]
    store = f"sqlite:///{(small_disk if what == 'the store' else tmp_path) / 'mlflow.db'}"
    words = [*words, f"tracking.uri={store}"]
    words += [] if what == "the store" else [f"output_dir={small_disk}/outputs", f"hydra.sweep.dir={small_disk}/sweep"]
    assert fork(folder, *words, "peft.r=2", "tracking.experiment=other").wait() == 0
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as out:
        while out.write(bytes(4096)):
            out.flush()
    assert fork(folder, *words, *axes).wait() == 1
    console = (folder / "console.txt").read_text()
    assert "No space is left to write" in console
    assert "Traceback" not in console
    filler.unlink()
    assert fork(folder, *words, *axes).wait() == 0
    assert "Traceback" not in (folder / "console.txt").read_text()
    runs = MlflowClient(store).search_runs(["2"])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 5
    soaked(1, f"disk of {what} that fills", "a sentence; resumed")


MEMORY = """
import gc, sys
import psutil
from sentexp.run import train
from sentexp.cli.main import main
original = train.train
def run(*arguments):
    result = original(*arguments)
    print("RESIDENT", psutil.Process().memory_info().rss, file=sys.stderr, flush=True)
    return result
train.train = run
main()
"""


def test_memory_returns_to_its_level_after_every_run(words, start, tmp_path):
    shape = ["model.random.hidden_size=512", "model.random.intermediate_size=1024", "model.random.num_hidden_layers=8"]
    shape += ["trainer.precision=fp32", "trainer.max_epochs=1"]  # in bf16 oneDNN keeps kernels for each new rank
    shape += ["hydra/launcher=sequential"]
    assert start(tmp_path / "memory", "-c", MEMORY, *words[2:], *AXES, *shape).wait() == 0
    lines = (tmp_path / "memory" / "console.txt").read_text().splitlines()
    resident = [int(line.split()[1]) for line in lines if line.startswith("RESIDENT")]
    assert len(resident) == 12
    print([round(value / 2**20) for value in resident], "MiB")
    assert abs(resident[-1] / resident[0] - 1) < 0.05


LAUNCHERS = {
    "workers": ["hydra.launcher.workers=2"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": [
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ],
}


@pytest.fixture
def cluster(serve, command_environment, free_port):
    """Return a function that starts a Ray cluster in another folder, and returns the overrides that choose it.

    Its workers do not see the folder `hidden`, as on another machine.
    """
    port = free_port()
    command_environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    words += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]

    def begin(folder, hidden=None):
        apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', hidden] if hidden else []
        serve([*apart, *words, f"--temp-dir={folder}"], folder, "Ray runtime started")
        return ["hydra/launcher=ray", f"hydra.launcher.ray.init.address=127.0.0.1:{port}"]

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as folder:  # the names of Ray's sockets must be short
        yield partial(begin, Path(folder))


def assert_same_sweep(folder, expected, store=None):
    assert table(folder) == table(expected)
    parent, children = recorded(folder, store)
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 3
    assert parent.data.metrics["sweep/ended"] == 2
    return children


def test_launchers_give_the_table_of_the_launcher_in_this_process(words, start, fork, tmp_path, cluster, mlflow_server):
    words = [*words, "peft.r=2,4"]
    assert fork(tmp_path / "here", *words, "hydra/launcher=sequential").wait() == 0
    for launcher, chosen in LAUNCHERS.items():
        code = start(tmp_path / launcher, *words, *chosen).wait()
        assert code == 0, (tmp_path / launcher / "console.txt").read_text()
        assert_same_sweep(tmp_path / launcher, tmp_path / "here")
    may_mount = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    (tmp_path / "server").mkdir()
    (tmp_path / "machine").mkdir()
    store, folder = mlflow_server(tmp_path / "server"), tmp_path / "machine" / "apart"
    chosen = [*cluster(tmp_path / "machine" if may_mount else None), f"tracking.uri={store}"]
    assert start(folder, *words, *chosen).wait() == 0, (folder / "console.txt").read_text()
    assert may_mount is not (folder / "outputs").exists()
    for run in assert_same_sweep(folder, tmp_path / "here", store):
        assert "result.json" in {file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)}


@pytest.mark.parametrize(
    ("launcher", "is_worker", "said"),
    [
        pytest.param("joblib", "loky", "starting the remaining runs again", marks=pytest.mark.exhaustive),
        ("workers", "spawn_main", "A worker process ended by signal 9: 2 of its runs are started again"),
    ],
)
def test_a_worker_that_is_killed_costs_no_run(words, fork, tmp_path, launcher, is_worker, said):
    import psutil

    process = fork(tmp_path / "killed", *words, "peft.r=2,4,8,16", "trainer.max_epochs=12", *LAUNCHERS[launcher])
    workers = []
    while not list(tmp_path.glob("killed/outputs/*/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.02)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if is_worker in " ".join(child.cmdline())
    ]
    os.kill(max(workers, key=lambda worker: worker.memory_info().rss).pid, signal.SIGKILL)
    assert process.wait() == 0, (tmp_path / "killed" / "console.txt").read_text()
    parent, children = recorded(tmp_path / "killed")
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 5
    assert said in (tmp_path / "killed" / "console.txt").read_text()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", exhaustive_but([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], signal.SIGTERM))
def test_workers_end_with_the_sweep_and_resume_with_it(words, start, fork, tmp_path, number):
    import psutil

    words = [*words, "peft.r=2,4", "trainer.max_epochs=12", *LAUNCHERS["workers"]]
    process = start(tmp_path / "ended", *words)
    while len(list(tmp_path.glob("ended/outputs/*/last.ckpt"))) < 2:
        assert process.poll() is None, (tmp_path / "ended" / "console.txt").read_text()
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait() == (-number if number == signal.SIGKILL else 130)
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    console = (tmp_path / "ended" / "console.txt").read_text()
    assert "Traceback" not in console
    parent, children = recorded(tmp_path / "ended")
    assert [run.info.status for run in children] == ["KILLED"] * 2
    assert parent.info.status == ("RUNNING" if number == signal.SIGKILL else "KILLED")
    assert fork(tmp_path / "ended", *words).wait() == 0
    assert "2 to resume" in (tmp_path / "ended" / "console.txt").read_text()
    parent, children = recorded(tmp_path / "ended")
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 3
