"""Workers: groups in their order, GPUs of their own, and what becomes of runs when one dies or all are interrupted."""

import os
import signal
import threading
import time
from collections import Counter

import pytest
import scripted_workers

from sentexp.errors import UserError
from sentexp.sweeps import fused, gpus, launch
from sentexp.sweeps.fused import FusedLauncher
from sentexp.sweeps.group import Task, Work
from sentexp.sweeps.job import take_gpu
from sentexp.sweeps.workers import WorkerPool
from sentexp.system import device


@pytest.fixture
def works(tmp_path, config):
    """Return a function from the names of runs, a list for each group, to groups."""

    def build(*groups):
        numbers = iter(range(99))
        return [
            Work(
                tasks=[Task(number=next(numbers), config=config(f"sweep.name={name}")) for name in names],
                together=len(names) > 1,
                folder=tmp_path,
                place=tmp_path,
                max_runs=4,
            )
            for names in groups
        ]

    return build


@pytest.fixture
def pool():
    """Return a function that makes a pool of so many scripted workers."""
    pools = []

    def build(count, serve=scripted_workers.serve):
        environments = [{"CUDA_VISIBLE_DEVICES": str(n), "OMP_NUM_THREADS": "1"} for n in range(count)]
        pools.append(WorkerPool(environments, serve))
        return pools[-1]

    yield build
    for made in pools:
        made.close()


def done_by(pool, works):
    """Do the works; return how often each run began, and the names of those that ended."""
    begun, ended = Counter(), []
    pool.run(works, lambda number, outcome: begun.update([number]) if outcome is None else ended.append(outcome.name))
    return begun, ended


def lines(tmp_path, name):
    return [line.split() for line in (tmp_path / f"{name}.begun").read_text().splitlines()]


def test_workers_do_all_groups_each_on_a_gpu_of_its_own(pool, works, tmp_path):
    begun, ended = done_by(pool(2), works(["fine0", "fine1"], ["fine2"], ["fine3"], ["fine4"]))
    assert sorted(ended) == [f"fine{n}" for n in range(5)]
    assert begun == dict.fromkeys(range(5), 1)
    where = {tuple(line) for n in range(5) for line in lines(tmp_path, f"fine{n}")}
    assert len({process for process, *_ in where}) == len(where) <= 2
    assert {(gpu, threads) for _, gpu, threads in where} <= {("0", "1"), ("1", "1")}
    assert lines(tmp_path, "fine0")[0][0] == lines(tmp_path, "fine1")[0][0]


def test_a_worker_that_dies_costs_no_run(pool, works, capfd):
    begun, ended = done_by(pool(2), works(["fine0", "frail1", "fine2", "fine3"], ["fine4"]))
    assert sorted(ended) == ["fine0", "fine2", "fine3", "fine4", "frail1"]
    assert begun == {0: 1, 1: 2, 2: 1, 3: 1, 4: 1}
    assert "A worker process ended by signal 9: 3 of its runs are started again." in capfd.readouterr().err


def test_a_run_that_takes_two_workers_down_is_given_up_and_the_others_are_done(pool, works):
    begun, ended = done_by(pool(2), works(["deadly0", "fine1"], ["fine2"]))
    assert sorted(ended) == ["fine1", "fine2"]
    assert begun == {0: 2, 1: 1, 2: 1}


def test_workers_that_cannot_start_are_given_up(pool, works, capfd):
    begun, ended = done_by(pool(2, scripted_workers.serve_nothing), works(["fine0"], ["fine1"], ["fine2"]))
    assert (begun, ended) == ({}, [])
    assert capfd.readouterr().err.count("A worker process ended with exit code 3") == 4


def test_a_pool_can_be_used_again(pool, works, tmp_path):
    workers = pool(1)
    assert done_by(workers, works(["fine0"]))[1] == ["fine0"]
    assert done_by(workers, works(["fine1"]))[1] == ["fine1"]
    assert lines(tmp_path, "fine0") == lines(tmp_path, "fine1")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_lets_runs_save_what_they_have(pool, works, tmp_path):
    def interrupt():
        while len(list(tmp_path.glob("*.begun"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        done_by(pool(2), works(["waits0"], ["waits1"], ["fine2"]))
    assert {file.name for file in tmp_path.glob("*.saved")} == {"waits0.saved", "waits1.saved"}
    assert not (tmp_path / "fine2.begun").exists()
    for name in ("waits0", "waits1"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(lines(tmp_path, name)[0][0]), 0)


@pytest.fixture
def two_gpus(monkeypatch):
    """Let this machine have two GPUs."""
    monkeypatch.setattr(device, "visible_gpus", lambda: ["2", "GPU-5"])


def test_there_is_a_worker_for_each_gpu(config, two_gpus):
    assert FusedLauncher().count_workers([config()]) == 2
    assert FusedLauncher(workers=1).count_workers([config()]) == 1
    assert FusedLauncher().count_workers([config("trainer.accelerator=cpu")]) == 1
    with pytest.raises(UserError, match=r"hydra.launcher.workers=3 is more than the GPUs that are visible \(2\)"):
        launch.check_launcher(FusedLauncher(workers=3), config())
    assert [each["CUDA_VISIBLE_DEVICES"] for each in fused._environments(2, ["2", "GPU-5"])] == ["2", "GPU-5"]


def test_on_the_cpu_there_is_one_worker_unless_it_is_asked_for_more(config, monkeypatch):
    monkeypatch.setattr(device, "visible_gpus", list)
    assert FusedLauncher().count_workers([config()]) == 1
    assert FusedLauncher(workers=3).count_workers([config()]) == 3
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert {each["OMP_NUM_THREADS"] for each in fused._environments(2, [])} == {"3"}
    assert {each["OMP_NUM_THREADS"] for each in fused._environments(9, [])} == {"1"}


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_a_number_of_workers_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=rf"hydra.launcher.workers={value} must be auto or a whole number, at least 1"):
        FusedLauncher(workers=value)


class JoblibLauncher:
    """What the launcher of the plugin has, as far as it is asked."""

    def __init__(self, **joblib):
        self.joblib = joblib


def test_joblib_starts_no_more_processes_than_there_are_gpus(config, two_gpus):
    launch.check_launcher(JoblibLauncher(n_jobs=2), config())
    launch.check_launcher(JoblibLauncher(n_jobs=3), config("trainer.accelerator=cpu"))
    with pytest.raises(UserError, match=r"n_jobs starts 3 processes, and each needs its own .* \(2\): give .*n_jobs=2"):
        launch.check_launcher(JoblibLauncher(n_jobs=3), config())


def test_the_sequential_launcher_says_that_it_leaves_gpus_out(config, two_gpus, capsys):
    launch.check_launcher(launch.BasicLauncher(), config())
    assert "hydra/launcher=sequential uses one of the 2 GPUs" in capsys.readouterr().out


def test_each_process_takes_a_gpu_that_no_other_has(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    with gpus.gpus_to_take(tmp_path / "gpus", ["2", "GPU-5"]):
        for _ in range(2):  # two processes
            monkeypatch.setattr(gpus, "_taken", [])
            take_gpu()
            take_gpu()
            taken += gpus._taken
            assert os.environ["CUDA_VISIBLE_DEVICES"] == ("2", "GPU-5")[len(taken) - 1]
    for lock in taken:
        lock.release()
    assert gpus.TO_TAKE not in os.environ


def test_the_gpus_that_are_visible_have_the_names_that_cuda_takes(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for given, expected in {None: ["0", "1"], "3,5": ["3", "5"], "GPU-a, GPU-b,-1,GPU-c": ["GPU-a", "GPU-b"]}.items():
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert device.visible_gpus() == expected
