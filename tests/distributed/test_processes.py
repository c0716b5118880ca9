"""Several processes of one run: who started them, what they say to each other, and the result of one process."""

import os

import pytest
import torch

from sentexp.config import Strategy, load_config
from sentexp.distributed import processes
from sentexp.distributed.processes import Launch
from sentexp.errors import UserError
from sentexp.run.train import run

CPU = torch.device("cpu")


@pytest.fixture
def third(monkeypatch):
    """Let this process be the third of four, without any other to speak to."""
    group = processes._Group(Launch("torchrun", 2, 4, 2), None)
    monkeypatch.setattr(processes._own, "group", group)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Launch()),
        (
            {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            Launch("torchrun", rank=5, count=8, local_rank=1),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"},
            Launch("srun", rank=5, count=8, local_rank=1),
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Launch()),  # a batch script without srun
    ],
)
def test_the_launcher_is_told_by_the_environment(environment, found, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "SLURM"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.launch() == found


def test_alone_everything_is_one_s_own():
    assert (processes.rank(), processes.count(), processes.leads()) == (0, 1, True)
    assert processes.share([4, 2, 7]) == [4, 2, 7]
    assert processes.exchange("word") == ["word"]
    assert processes.led(lambda: 3) == 3


@pytest.mark.usefixtures("third")
def test_each_row_of_a_batch_is_one_process_s(monkeypatch):
    assert processes.share([10, 11, 12, 13, 14, 15, 16]) == [12, 16]
    assert processes.share([10, 11]) == []
    every = []
    for rank in range(4):
        monkeypatch.setattr(processes._own, "group", processes._Group(Launch("srun", rank, 4, rank), None))
        every += processes.share(list(range(11)))
    assert sorted(every) == list(range(11))


@pytest.mark.usefixtures("launched")
def test_words_of_any_shape_are_exchanged_and_sums_are_in_place():
    with processes.joined(Strategy.ddp, CPU):
        (found,) = processes.exchange([torch.ones(3, 2), None])
        assert found[0].shape == (3, 2)
        assert found[1] is None
        tensor = torch.tensor([2.0])
        processes.add_up([tensor])
        assert tensor == 2.0
    assert processes.count() == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_need_a_launcher(strategy, config):
    with pytest.raises(UserError, match=f"torchrun --nproc-per-node 2 -m sentexp trainer={strategy}"):
        run(config(f"trainer={strategy}"))


def test_one_process_is_not_started_twice(config, launched, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun has started 2 processes.*trainer=ddp"):
        run(config())


def test_what_shards_cannot_do_is_refused():
    for override in ("peft=qlora", "optim=adafactor", "trainer.precision=fp16"):
        with pytest.raises(UserError, match="trainer=fsdp"):
            load_config("trainer=fsdp", override)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_torchrun_gives_the_same(strategy, config, train, launched, ragged, same, monkeypatch, tmp_path):
    """Shards go through other layers and another AdamW."""
    together = run(config(f"trainer={strategy}", *ragged))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    same(train(*ragged, f"output_dir={tmp_path / 'alone'}"), together.folder)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(words, train, torchrun, ragged, same, tmp_path):
    plain = (
        "optim=sgd",
        "optim.lr=0.1",
        "trainer.gradient_clip_val=null",
        "peft.dropout=0",
    )  # shows a gradient's length
    done = torchrun("trainer=ddp", *words, *ragged, *plain)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("peft=lora") == 1
    (together,) = (tmp_path / "outputs").iterdir()
    same(train(*ragged, *plain, f"output_dir={tmp_path / 'alone'}"), together)
    assert not list(together.glob("*.ckpt"))
