"""Who started a process, and what it may do then."""

import os

import pytest

from sentexp.distributed.launch import Launch, current_launch
from sentexp.errors import UserError
from sentexp.run.train import train


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Launch()),
        (
            {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            Launch("torchrun", rank=5, world_size=8, local_rank=1),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"},
            Launch("srun", rank=5, world_size=8, local_rank=1),
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Launch()),  # a batch script without srun
    ],
)
def test_the_launcher_is_told_by_the_environment(environment, found, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "SLURM"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert current_launch() == found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_need_a_launcher(strategy, config):
    with pytest.raises(UserError, match=f"torchrun --nproc-per-node 2 -m sentexp trainer={strategy}"):
        train(config(f"trainer={strategy}"))


def test_one_process_is_not_started_twice(config, launched, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun has started 2 processes.*trainer=ddp"):
        train(config())
