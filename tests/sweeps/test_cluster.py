"""Clusters: runs become jobs, their ends come back, and what is said when a cluster does not take or loses them."""

import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.run.fusing import fuse
from sentexp.sweeps import cluster, group, job, launch, ray_cluster, slurm
from sentexp.sweeps.cluster import ClusterLauncher, Ends, do_and_return, form_jobs, require_processes, run_on_cluster
from sentexp.sweeps.launch import Job
from sentexp.sweeps.slurm import GroupJob, SlurmLauncher
from sentexp.sweeps.sweep_dir import LOG, Outcome, State, SweepFolder
from sentexp.system import console
from sentexp.training import preemption
from sentexp.training.checkpoint import LAST, Checkpoints


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a sweep that has begun."""
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(9, "validation/accuracy", None)
    return folder


@pytest.fixture
def jobs(config):
    """Return a function from overrides, one for each run, to jobs."""

    def build(*settings):
        return [
            Job(number=number, overrides=[], config=config(f"sweep.name=run{number}", *words.split()))
            for number, words in enumerate(settings)
        ]

    return build


def finished(name, objective=0.5):
    return Outcome(name=name, state=State.finished, objective=objective, metrics={"seconds": 1.0})


LORA, FULL = [f"peft.r={rank}" for rank in range(2, 10)], ["peft=full seed=1", "peft=full seed=2", "peft=full seed=3"]


@pytest.mark.parametrize(
    ("runs_per_job", "sizes"), [(1, [1] * 11), (4, [4, 4, 3]), ("auto", [8, 1, 1, 1]), (2, [2, 2, 2, 2, 2, 1])]
)
def test_a_job_is_a_group_of_runs(jobs, folder, runs_per_job, sizes):
    works = form_jobs(jobs(*LORA, *FULL), folder, runs_per_job)
    assert sorted((len(work.tasks) for work in works), reverse=True) == sizes
    assert sorted(task.number for work in works for task in work.tasks) == list(range(11))
    for work in works:
        assert len({type(task.config.peft) for task in work.tasks}) == 1


def test_runs_of_several_processes_train_one_at_a_time(jobs):
    found = fuse([each.config for each in jobs("trainer=ddp peft.r=2", "trainer=ddp peft.r=4")])
    assert found.groups == []
    assert set(found.reasons.values()) == {"trainer=ddp trains one run in several processes"}


@pytest.mark.parametrize("value", [0, "many", 1.5, True])
def test_a_number_of_runs_for_a_job_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=rf"hydra.launcher.runs_per_job={value} must be auto or a whole number"):
        SlurmLauncher(runs_per_job=value)


def test_the_number_of_processes_must_fit_the_strategy():
    require_processes(SlurmLauncher(tasks_per_node=2), "ddp")
    require_processes(SlurmLauncher(nodes=2), "fsdp")
    require_processes(SlurmLauncher(), "single")
    with pytest.raises(UserError, match=r"trainer=ddp trains .* give hydra.launcher.tasks_per_node=2"):
        require_processes(SlurmLauncher(), "ddp")
    with pytest.raises(UserError, match=r"tasks_per_node=4 starts 4 processes .* add trainer=ddp"):
        require_processes(SlurmLauncher(nodes=2, tasks_per_node=2), "single")
    with pytest.raises(UserError, match="This launcher starts one process for each run"):
        launch.require_strategy(
            ray_cluster.RayLauncher(SimpleNamespace(init={}, remote={})), load_config("trainer=ddp"), []
        )


class Losing(ClusterLauncher):
    """Finishes the runs of each job but those whose names it is given, which it loses so many times."""

    def __init__(self, runs_per_job=2, **lost):
        super().__init__(runs_per_job)
        self.lost, self.sent = lost, []

    def run(self, works, ends):
        """End the runs of each job in turn, up to one that is lost."""
        self.sent.append(sorted([task.number for task in work.tasks] for work in works))
        for work in works:
            for task in work.tasks:
                name = task.config.sweep.name
                if self.lost.get(name, 0) > 0:
                    self.lost[name] -= 1
                    break
                ends.take(task.number, finished(name))


def test_runs_of_a_job_that_is_killed_are_sent_again_one_by_one(jobs, folder, capsys):
    launcher = Losing(runs_per_job=4, run0=1)
    run_on_cluster(launcher, jobs(*LORA[:6]), folder)
    assert len(launcher.sent) == 2
    assert all(len(numbers) == 1 for numbers in launcher.sent[1])
    assert {outcome.state for outcome in folder.outcomes().values()} == {State.finished}
    assert len(folder.outcomes()) == 6
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == [f"{n}/9" for n in range(1, 7)]
    assert "were killed with their jobs, and are sent once more" in shown.err


def test_a_run_that_is_lost_twice_has_no_end(jobs, folder):
    launcher = Losing(runs_per_job=1, run1=9)
    run_on_cluster(launcher, jobs(*LORA[:3]), folder)
    assert len(launcher.sent) == 2
    assert sorted(folder.outcomes()) == [0, 2]


def test_a_failure_comes_with_its_log_and_each_end_is_said_once(jobs, folder, capsys):
    ends = Ends(jobs("seed=1", "seed=2"), folder)
    folder.of(0).mkdir()
    (folder.of(0) / LOG).touch()
    folder.write(0, Outcome(name="run0", state=State.failed, error="The roof fell in."))  # by the job
    ends.look()
    ends.take(0, Outcome(name="run0", state=State.failed, error="The roof fell in."))  # returned by it
    ends.look()
    shown = capsys.readouterr()
    assert shown.err == f"sentexp: run0: The roof fell in. Its log: {folder.of(0) / LOG}\n"
    assert shown.out.count("1/9 | run0 | failed") == 1


def test_runs_that_end_at_once_are_counted_one_by_one(jobs, folder, capsys):
    ends = Ends(jobs("seed=1", "seed=2"), folder)
    for number in (0, 1):
        folder.write(number, finished(f"run{number}"))
    ends.look()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1/9", "2/9"]


@pytest.mark.parametrize("shared", [True, False])
def test_a_job_returns_the_ends_of_its_runs_and_leaves_out_what_has_ended(jobs, folder, tmp_path, monkeypatch, shared):
    done = []

    def end(config, *_):
        done.append(config.sweep.name)
        assert not config.trainer.progress_bar
        return finished(config.sweep.name)

    monkeypatch.setattr(job, "do_job", end)
    monkeypatch.chdir(tmp_path)
    (work,) = form_jobs(jobs("peft=full seed=1", "peft=full seed=2"), folder, 2)
    folder.write(1, finished("run1", 0.9))
    if not shared:
        (folder.path / "sweep.json").unlink()
    returned = dict(do_and_return(work))
    assert returned.keys() == {0, 1}
    assert returned[1].objective == (0.9 if shared else 0.5)
    assert done == (["run0"] if shared else ["run0", "run1"])
    assert (0 in folder.outcomes()) is shared


class FakeJob:
    """A job of submitit's that has left what it is given."""

    def __init__(self, number, tmp_path, result=None, error=None):
        self.job_id = number
        self._result, self._error = result, error
        result_file = tmp_path / f"{number}.result"
        self.paths = SimpleNamespace(result_pickle=result_file, stderr=tmp_path / f"{number}.err")
        if result is not None or error is not None:
            result_file.touch()

    def task(self, _):
        """Return its only task."""
        return self

    def exception(self):
        """Return why it failed."""
        return self._error

    def result(self):
        """Return what it returned."""
        return self._result


@pytest.fixture
def impatient(monkeypatch):
    """Let a launcher look all the time."""
    monkeypatch.setattr(slurm, "POLL", 0.0)
    monkeypatch.setattr(slurm, "GRACE", 0.0)


def test_jobs_end_with_their_results_or_as_failed_or_lost(jobs, folder, tmp_path, capsys, impatient, monkeypatch):
    works = form_jobs(jobs("seed=1", "seed=2", "seed=3", "seed=4"), folder, 1)
    names = {work.tasks[0].number: number for number, work in enumerate(works)}
    sent = [FakeJob(f"7_{number}", tmp_path) for number in range(4)]
    sent[names[0]] = FakeJob("7_0", tmp_path, result=[(0, finished("run0"))])
    sent[names[1]] = FakeJob(
        "7_1", tmp_path, error=RuntimeError("...\nJob not requeued because: timed-out too many times.")
    )
    sent[names[2]].paths.stderr.touch()
    answers = [None, {"7_8": "RUNNING"}]
    monkeypatch.setattr(slurm, "queue_states", lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    monkeypatch.setattr(slurm, "_last_state", lambda _: "cancelled")
    ends = Ends(jobs("seed=1", "seed=2", "seed=3", "seed=4"), folder)
    SlurmLauncher()._wait({each.job_id: (each, work) for each, work in zip(sent, works, strict=True)}, ends)
    ended = folder.outcomes()
    assert {number: outcome.state for number, outcome in ended.items()} == {0: State.finished, 1: State.failed}
    assert ended[1].error.startswith("Job not requeued because: timed-out too many times. The log of job 7_1: ")
    shown = capsys.readouterr().err
    assert f"has left the queue without a result (cancelled). Its log: {sent[names[2]].paths.stderr}" in shown
    assert f"without a log: do all nodes share {folder.path}?" in shown


def test_a_job_that_is_queued_is_waited_for(jobs, folder, tmp_path, impatient, monkeypatch):
    (work,) = form_jobs(jobs("seed=1"), folder, 1)
    sent = FakeJob("7", tmp_path)
    answers = [{"7": "PENDING"}, None, {"7": "RUNNING"}, {"7": "REQUEUED"}]

    def look():
        if len(answers) > 1:
            return answers.pop(0)
        sent.paths.result_pickle.touch()
        return answers[0]

    sent._result = [(0, finished("run0"))]
    monkeypatch.setattr(slurm, "queue_states", look)
    SlurmLauncher()._wait({"7": (sent, work)}, Ends(jobs("seed=1"), folder))
    assert folder.outcomes()[0].state is State.finished


def test_states_are_shown_where_someone_looks_when_they_change_and_seldom(capsys, monkeypatch):
    launcher = SlurmLauncher()
    monkeypatch.setattr(console.OUT, "_force_terminal", False)
    launcher._say_states(["RUNNING"], 1)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(console.OUT, "_force_terminal", True)
    launcher._said_at = -1e9
    launcher._say_states(["RUNNING", "PENDING", "CONFIGURING"], 4)
    assert "Jobs: 2 queued, 1 running, 1 done" in capsys.readouterr().out
    launcher._say_states(["RUNNING", "RUNNING"], 4)  # too early
    launcher._said_at = -1e9
    launcher._say_states(["RUNNING", "PENDING", "CONFIGURING"], 4)  # the same
    assert capsys.readouterr().out == ""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a program of the name in the path, which runs these lines of sh."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")

    def write(name, lines):
        (place / name).write_text(f"#!/bin/sh\n{lines}\n")
        (place / name).chmod(0o755)

    return write


def test_what_sbatch_says_is_said_once(jobs, folder, tmp_path, programs, capsys):
    programs("srun", "exit 0")
    programs("sbatch", "echo 'sbatch: error: invalid partition: x\nsbatch: error: Invalid partition name' >&2; exit 1")
    launcher = SlurmLauncher(submitit_folder=str(tmp_path / "%j"), partition="x", timeout_min=5, tasks_per_node=1)
    with pytest.raises(UserError, match=r"^SLURM does not take the jobs: Invalid partition name$"):
        launcher.run(form_jobs(jobs("seed=1"), folder, 1), Ends([], folder))
    assert capsys.readouterr() == ("", "")


def test_the_queue_is_read_without_accounting(programs):
    programs("squeue", "echo '12_0 RUNNING'; echo '12_1 PENDING'")
    programs("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.queue_states() == {"12_0": "RUNNING", "12_1": "PENDING"}
    assert slurm._last_state("12_0") == "cancelled or killed"
    programs("sacct", "echo 'CANCELLED by 0'")
    assert slurm._last_state("12_0") == "cancelled by 0"
    programs("squeue", "exit 1")
    assert slurm.queue_states() is None


@pytest.fixture
def signals():
    """Put the handlers of signals back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    preemption.forget()


def test_a_job_that_is_warned_lets_its_runs_save_and_is_queued_again(signals, monkeypatch, jobs, folder):
    requeued = []
    signal.signal(signal.SIGUSR2, lambda *_: requeued.append(preemption.is_asked_to_stop()))

    def work(_):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert preemption.is_asked_to_stop()
        assert requeued == []
        raise preemption.Preempted

    monkeypatch.setattr(slurm, "do_and_return", work)
    with pytest.raises(SystemExit):
        GroupJob(form_jobs(jobs("seed=1"), folder, 1)[0], 60)()
    assert requeued == [True]
    assert signal.alarm(0) == 0


def test_a_job_that_cannot_save_in_time_is_queued_again_as_it_is(signals, monkeypatch, jobs, folder):
    requeued = []
    signal.signal(signal.SIGUSR2, lambda *_: requeued.append(time.monotonic()))

    def work(_):
        os.kill(os.getpid(), signal.SIGUSR2)
        while not requeued:
            time.sleep(0.01)
        return []

    monkeypatch.setattr(slurm, "do_and_return", work)
    assert GroupJob(form_jobs(jobs("seed=1"), folder, 1)[0], 1)() == []


def test_a_run_that_is_asked_to_stop_saves_after_its_step_and_resumes(signals, train, tmp_path, monkeypatch):
    words = ("trainer.max_epochs=3", "trainer.save_steps=1000", "trainer.eval_steps=1000", "baseline=false")
    whole = train(*words, f"output_dir={tmp_path / 'whole'}")
    original = Checkpoints.on_train_batch_start

    def begin(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 4:
            preemption.ask_runs_to_stop()

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", begin)
    with pytest.raises(preemption.Preempted):
        train(*words)
    assert len(list(tmp_path.glob(f"outputs/*/{LAST}"))) == 1
    monkeypatch.undo()
    preemption.forget()
    resumed = train(*words)
    assert resumed.metrics["train/steps"] == whole.metrics["train/steps"] == 12
    assert resumed.metrics["test/loss"] == whole.metrics["test/loss"]


def test_no_run_begins_in_a_job_that_ends(signals, jobs, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "do_job", lambda *_: pytest.fail("it has begun"))
    preemption.ask_runs_to_stop()
    with pytest.raises(preemption.Preempted):
        group.do_work(form_jobs(jobs("seed=1"), folder, 1)[0], lambda *_: None)


def test_an_address_where_nobody_listens_is_refused():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match=rf"address=127.0.0.1:{port}: nobody answers there .* No run was started"):
        ray_cluster.check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("print('gcs: Unauthenticated: InvalidAuthToken', flush=True); import time; time.sleep(600)", "RAY_AUTH_TOKEN"),
        ("raise SystemExit('no Ray is running')", "address=auto cannot be joined: no Ray is running"),
        ("import os; os._exit(4)", "does not answer within 60 s"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_refused(monkeypatch, probe, said):
    monkeypatch.setattr(ray_cluster, "PROBE", probe)
    with pytest.raises(UserError, match=said):
        ray_cluster.check_address("auto")


def test_a_cluster_that_can_be_joined_is_taken(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PROBE", "pass")
    ray_cluster.check_address("auto")
    launcher = ray_cluster.RayLauncher(SimpleNamespace(init={"address": None}, remote={}))
    monkeypatch.setattr(ray_cluster, "PROBE", "raise SystemExit('asked')")
    launcher.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=soon"), "hydra.launcher.timeout_min"),
        (("hydra/launcher=submitit_slurm", "hydra.launcher.partitions=a"), "partitions"),
        (("hydra/launcher=submitit_slurm", "hydra.launcher.runs_per_job=-1"), "runs_per_job=-1 must be auto"),
        (("hydra/launcher=ray", "hydra.launcher.ray.init.address=127.0.0.1:1"), "nobody answers there"),
    ],
)
def test_a_launcher_that_cannot_be_used_stops_the_sweep_before_it_begins(sentexp, tmp_path, words, said):
    code, out, err = sentexp("--multirun", "seed=1,2", *words)
    assert code == 1
    assert said in err
    assert out == ""
    assert err.count("sentexp:") == 1
    assert not (tmp_path / "multirun").exists()


def test_a_job_of_slurm_is_queued_again_twenty_times(sentexp, monkeypatch):
    made = []
    monkeypatch.setattr(cluster.ClusterLauncher, "check", lambda self: made.extend([self]))
    monkeypatch.setattr(SlurmLauncher, "run", lambda self, works, ends: None)
    assert sentexp("--multirun", "seed=1", "hydra/launcher=submitit_slurm", "hydra.launcher.max_num_timeout=7")[0] == 1
    assert sentexp("--multirun", "seed=1", "hydra/launcher=submitit_slurm")[0] == 1
    assert [(each.max_num_timeout, each.runs_per_job) for each in made] == [(7, 1), (20, 1)]
