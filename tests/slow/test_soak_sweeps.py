"""Sweeps under kills, crowds and faults, drawn at random: `make soak` does all of them, `make slow` a tenth.

A table at the end says what was done; a seed repeats it.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import warm
from mlflow import MlflowClient
from soak import SEED, share_of
from whole_sweeps import EPS, RATE, assert_alike, mlflow_words, recorded, table

pytestmark = pytest.mark.slow

KILLS, PROCESSES = 50, 8
AXES = ["peft.r=2,4,8", f"optim.lr=1e-3,2e-3,{RATE / 2},{RATE}", "trainer.precision=fp32", f"optim.eps={EPS}"]
AXES += ["trainer.monitor=validation/loss", "trainer.eval_steps=1000"]
LAUNCHERS = {"fused": [], "one after the other": ["hydra/launcher=sequential"]}

CUT = """
# As a power cut: the process is gone before the n-th file that it has written gets its name, or right after.
import os, sys
left, rename = int(sys.argv.pop(1)), os.replace
def replace(*files, **options):
    global left
    left -= 1
    if left == 0:
        os._exit(137)
    rename(*files, **options)
    if left == 1 and len(os.fspath(files[1])) % 2:
        os._exit(137)
os.replace = replace
from sentexp.cli.main import main
main()
"""
CLOCK = """
# The clock jumps: forward by a day, then back by two, again and again.
import sys, time
calls, now = 0, time.time
def jumping():
    global calls
    calls += 1
    return now() + 86400 * (calls // 50 % 3 - 1)
time.time = jumping
from sentexp.cli.main import main
main()
"""


@pytest.fixture
def console(tmp_path):
    """Return a function that returns what the commands in a folder have printed, in which no traceback may be."""

    def read(folder):
        text = (folder / "console.txt").read_text()
        assert "Traceback" not in text, text
        return text

    return read


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_random_kills_lose_no_run_and_change_no_number(launcher, sweep_words, fork, tmp_path, console, soaked):
    words, dice = [*sweep_words[2:], *AXES, *LAUNCHERS[launcher]], random.Random(f"{SEED} {launcher}")
    cut = tmp_path / "cut.py"
    cut.write_text(CUT)
    assert fork(tmp_path / "undisturbed", "-m", "sentexp", *words).wait() == 0
    left, sweeps, ways = share_of(KILLS // len(LAUNCHERS), 2), 0, {"SIGKILL": 0, "SIGTERM": 0, "cut": 0}
    while left > 0:
        folder, code = tmp_path / f"killed{sweeps}", None
        while code != 0:
            way = dice.choice([*ways]) if left > 0 else "none"
            code = _run(way, dice, fork, folder, cut, words)
            if code != 0:
                left, ways[way] = left - 1, ways[way] + 1
        sweeps += 1
        console(folder)
        assert_alike(table(folder), table(tmp_path / "undisturbed"))
        parent, children = recorded(folder)
        assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 13
    soaked(sweeps, f"sweeps of 12 runs, {launcher}, ended {ways}", "no run lost, none twice, every metric equal")


def _run(way, dice, fork, folder, cut, words):
    """Run the sweep in a folder, and end it in a way; return its exit code."""
    if way == "cut":
        code = fork(folder, str(cut), str(dice.randint(1, 60)), *words).wait()
        assert code in (0, 137), (folder / "console.txt").read_text()
        return code
    process = fork(folder, "-m", "sentexp", *words)
    if way != "none":
        process.join(dice.uniform(0.5, 5))
        if process.poll() is None:
            os.kill(process.pid, signal.Signals[way])
    code = process.wait()
    assert code in {"none": (0,), "SIGKILL": (0, -9), "SIGTERM": (0, 130, -15)}[way], (
        folder / "console.txt"
    ).read_text()
    return code


def test_processes_at_one_store_and_folder_do_each_run_once(sweep_words, fork, tmp_path, console, soaked):
    count = share_of(PROCESSES, 3)
    folder, words = tmp_path / "crowd", [*sweep_words, *AXES]
    processes = [fork(folder, *words) for _ in range(count)]
    until = time.monotonic() + 1800  # processes that wait for each other would do so for ever
    for process in processes:
        process.join(until - time.monotonic())
    codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, (folder / "console.txt").read_text()
    console(folder)
    _, children = recorded(folder)
    assert [run.info.status for run in children] == ["FINISHED"] * 12
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    for run in children:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/loss")]
        assert len(set(steps)) == len(steps), "trained twice"
    soaked(count, "processes at one sweep of 12 runs", "each run once")


def test_a_clock_that_jumps_changes_no_number(sweep_words, fork, tmp_path, console, soaked):
    program = tmp_path / "clock.py"
    program.write_text(CLOCK)
    words = [*sweep_words[2:], "peft.r=2,4", *AXES[2:]]
    assert fork(tmp_path / "steady", "-m", "sentexp", *words).wait() == 0
    assert fork(tmp_path / "jumping", str(program), *words).wait() == 0, console(tmp_path / "jumping")
    assert_alike(table(tmp_path / "jumping"), table(tmp_path / "steady"))
    assert fork(tmp_path / "jumping", "-m", "sentexp", *words).wait() == 0
    assert "2 finished before" in console(tmp_path / "jumping")
    soaked(1, "sweep while the clock jumps", "the numbers of a steady clock")


class Disk:
    """A disk of its own: a file with a file system that turns read-only, whatever is open, at a fault.

    Args:
        image: the file.
        folder: where it is mounted.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        self.image, self.folder = image, folder

    def mount(self) -> None:
        """Mount it."""
        _do("mount", "-o", "loop", self.image, self.folder)

    def fail(self) -> None:
        """Report a fault of the file system, which turns it read-only."""
        device = Path(_do("findmnt", "--noheadings", "--output", "SOURCE", self.folder).strip()).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
        with pytest.raises(OSError, match="Read-only"):
            (self.folder / "probe").touch()

    def repair(self) -> None:
        """Check the file system and mount it again."""
        _do("umount", self.folder)
        subprocess.run(["e2fsck", "-fy", self.image], capture_output=True, check=False)
        self.mount()


def _do(*words):
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def disk(tmp_path):
    """Return a disk of 64 MiB."""
    made = Disk(tmp_path / "disk.img", tmp_path / "disk")
    made.folder.mkdir()
    try:
        _do("truncate", "--size=64M", made.image)
        _do("mkfs.ext4", "-q", "-e", "remount-ro", made.image)
        made.mount()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs mkfs.ext4 and the right to mount a file")
    yield made
    subprocess.run(["umount", "--lazy", made.folder], check=True)


def test_a_disk_that_turns_read_only_costs_a_sentence_and_no_run(
    sweep_words, command_environment, tmp_path, disk, console, soaked
):
    words, folder = [*sweep_words, "peft.r=2,4", "trainer.max_epochs=12", *AXES[2:]], disk.folder / "run"
    said = tmp_path / "console.txt"
    folder.mkdir()

    def start():
        return warm.Process(words, folder, command_environment, said, said)

    process = start()
    while not list(folder.glob("outputs/*/last.ckpt")):
        assert process.poll() is None, said.read_text()
        time.sleep(0.02)
    disk.fail()
    assert process.wait() == 1, said.read_text()
    assert "Read-only file system" in console(tmp_path)
    disk.repair()
    assert start().wait() == 0, said.read_text()
    parent, children = recorded(folder)
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 3
    soaked(1, "disk that turns read-only", "a sentence; resumed")


@pytest.fixture
def away(tmp_path, command_environment, free_port):
    """Return an address of MLflow, and functions that start its server and end it."""
    folder, port, running = tmp_path / "server", free_port(), []
    command_environment |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    command_environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    folder.mkdir()

    def begin():
        with (folder / "server.txt").open("w") as out:
            words = {"cwd": folder, "env": command_environment, "stdout": out, "stderr": out, "start_new_session": True}
            running.append(subprocess.Popen(mlflow_words(port), **words))
        while "Application startup complete" not in (folder / "server.txt").read_text():
            assert running[-1].poll() is None, (folder / "server.txt").read_text()
            time.sleep(0.1)

    def end():
        with suppress(ProcessLookupError):
            os.killpg(running[-1].pid, signal.SIGKILL)
        running[-1].wait()

    yield f"http://127.0.0.1:{port}", begin, end
    end()


def test_an_mlflow_server_that_is_away_costs_a_sentence_and_no_run(sweep_words, fork, tmp_path, away, console, soaked):
    uri, begin, end = away
    begin()
    words = [*sweep_words, "peft.r=2,4", "trainer.max_epochs=12", f"tracking.uri={uri}", *AXES[2:]]
    process = fork(tmp_path / "run", *words)
    while not list(tmp_path.glob("run/outputs/*/last.ckpt")):
        assert process.poll() is None, console(tmp_path / "run")
        time.sleep(0.02)
    end()
    assert process.wait() == 1, console(tmp_path / "run")
    assert uri in console(tmp_path / "run")
    begin()
    assert fork(tmp_path / "run", *words).wait() == 0, console(tmp_path / "run")
    parent, children = recorded(tmp_path / "run", uri)
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 3
    soaked(1, "MLflow server that stops and comes back", "a sentence; resumed")


def test_damaged_files_cost_a_sentence_and_no_run(sweep_words, fork, tmp_path, command_environment, console, soaked):
    dice, damaged = random.Random(f"{SEED} damage"), []
    cache = tmp_path / "cache"
    command_environment["SENTEXP_CACHE"] = str(cache)
    words = [*sweep_words, "peft.r=2,4", "trainer.max_epochs=6", *AXES[2:], "model=tiny"]
    assert fork(tmp_path / "whole", *words).wait() == 0
    for number in range(share_of(30, 3)):
        folder = tmp_path / f"damaged{number}"
        process = fork(folder, *words)
        while not list(folder.glob("outputs/*/last.ckpt")) and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()
        files = [*cache.rglob("*"), *(folder / "outputs").rglob("*.ckpt"), *(folder / "outputs").rglob("state.json")]
        file = dice.choice([file for file in files if file.is_file() and file.stat().st_size > 0])
        _damage(file, dice)
        damaged.append(file.name)
        if fork(folder, *words).wait() != 0:
            text = console(folder)
            assert file.name in text or str(file.parent.name) in text, text
            shutil.rmtree(file.parent)
            assert fork(folder, *words).wait() == 0, (file, console(folder))
        console(folder)
        assert_alike(table(folder), table(tmp_path / "whole"))
    kinds = ", ".join(sorted(set(damaged)))
    soaked(len(damaged), f"files damaged between two starts ({kinds})", "the numbers of whole files")


def _damage(file: Path, dice: random.Random) -> None:
    """Change some bytes, or cut the end off; a text that is cut is seen to be."""
    data = bytearray(file.read_bytes())
    if dice.random() < 0.3 or file.suffix == ".json":
        del data[dice.randrange(len(data)) :]
    else:
        for _ in range(8):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)
