"""Two processes that shard, answer, run out of memory, fail, are killed and go on as one; one result, told once."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from storages import over

pytestmark = pytest.mark.slow

ANSWERING = ("task=causal_lm", "task.generate=true", "task.calibration=batch", "task.template='{text} It was'")
PLAIN = ("optim=sgd", "optim.lr=0.1")  # AdamW divides the length of a gradient out
DRIVER = """
import os, signal, sys
import torch
from sentexp.cli.main import main
from sentexp.models.fast.padding_free import PaddingFreeModel

hidden, calls = PaddingFreeModel.hidden, []

def disturbed(self, packed, cache=None):
    if torch.is_grad_enabled():
        calls.append(packed.rows)
        {disturbance}
    return hidden(self, packed, cache)

PaddingFreeModel.hidden = disturbed
if __name__ == "__main__":
    main()
"""
SECOND = "os.environ.get('RANK') == '1'"


@pytest.fixture
def disturbed(tmp_path):
    """Return a function that writes the command as a program with a disturbance in each forward pass of training."""

    def write(disturbance):
        file = tmp_path / "driver.py"
        file.write_text(DRIVER.format(disturbance=disturbance))
        return (str(file),)

    return write


@pytest.fixture
def launch(request, torchrun, forked):
    """Return a function that starts processes: torchrun itself for the first case of each test, then `forked`."""
    return forked if any(request.node.callspec.indices.values()) else torchrun


@pytest.fixture
def recorded(store):
    """Return words that record in MLflow, and a function that returns the one run of a result that is recorded."""

    def found():
        (run,) = [run for run in MlflowClient(store).search_runs(["1"]) if "baseline" not in run.data.tags]
        return run

    return ["tracking=mlflow", f"tracking.uri={store}", "tracking.system_metrics=false"], found


def folder_of(tmp_path):
    return next(path for path in (tmp_path / "outputs").iterdir() if not path.name.startswith("baseline"))


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer=fsdp", "peft=lora", "peft.dropout=0", "baseline=true"),
        ("trainer=fsdp", "peft=full", *PLAIN, "trainer.gradient_clip_val=null"),
        ("trainer=fsdp", "peft=full", *PLAIN, "trainer.gradient_clip_val=0.1", "trainer.gradient_checkpointing=true"),
        ("trainer=fsdp", "peft=lora", "peft.dropout=0", *ANSWERING, "baseline=true"),
        ("trainer=fsdp", "peft=full", *ANSWERING),
        ("trainer=fsdp", "peft=head"),
        ("trainer=ddp", "peft=lora", "peft.dropout=0", *ANSWERING, "baseline=true"),
        ("trainer=ddp", "peft=full", "data.class_weights=balanced", "task.focal_gamma=1"),
        ("trainer=ddp", "peft=qlora", "peft.dropout=0", *PLAIN),
        *(
            over(name, ("trainer=ddp", "peft=lora", f"peft.quantization={name}", "peft.dropout=0", *PLAIN))
            for name in ("int8_weight_only", "hqq4")
        ),
        ("trainer=ddp", "peft=lora", "peft.dropout=0", "trainer.average=ema", "trainer.unfreeze=0.5"),
        (
            "trainer=fsdp",
            "peft=full",
            *PLAIN,
            "trainer.unfreeze=0.5",
            "optim.layer_decay=0.8",
            "task.label_smoothing=0.1",
        ),
    ],
    ids="-".join,
)
def test_two_processes_give_the_result_of_one(overrides, words, train, launch, ragged, same, tmp_path):
    done = launch(*words, *ragged, *overrides)
    assert done.returncode == 0, done.stderr
    same(train(*ragged, *overrides, "trainer.strategy=single", f"output_dir={tmp_path / 'alone'}"), folder_of(tmp_path))


def test_it_is_one_mlflow_run(words, forked, ragged, recorded):
    done = forked("trainer=ddp", *words, *ragged, *recorded[0], "baseline=true")
    assert done.returncode == 0, done.stderr
    tracked = recorded[1]()
    assert (tracked.info.status, tracked.data.tags["processes"]) == ("FINISHED", "2")
    again = forked("trainer=ddp", *words, *ragged, *recorded[0], "baseline=true")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished: this is its result") == 1
    assert recorded[1]().info.end_time == tracked.info.end_time


def test_processes_do_not_share_dropout(words, forked, disturbed):
    line = "'seed ' + os.environ.get('RANK', '0') + ' ' + str(torch.initial_seed()) + chr(10)"
    program = disturbed(f"os.write(1, ({line}).encode())")  # in one piece: what two processes print can mix
    seeds = {}
    for count, option in ((1, "default"), (2, "ddp")):
        done = forked(f"trainer={option}", *words, f"output_dir=of{count}", program=program, count=count)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seed")]
        seeds[count] = {(rank, seed) for _, rank, seed in lines}
    assert {seed for rank, seed in seeds[2] if rank == "0"} == {seed for _, seed in seeds[1]}
    assert len({seed for _, seed in seeds[2]}) == 2 * len(seeds[1]) == 8


def test_out_of_memory_in_one_process_halves_the_batches_of_all(
    words, train, forked, ragged, same, disturbed, recorded, tmp_path
):
    program = disturbed(f"if {SECOND} and packed.rows > 1: raise torch.OutOfMemoryError('out of memory')")
    done = forked("trainer=ddp", *words, *ragged, "peft.dropout=0", *recorded[0], program=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("batches of 2 rows, accumulated 10 times") == 1
    assert recorded[1]().data.tags["out_of_memory"] == "batches of 2 rows, accumulated 10 times"
    same(train(*ragged, "peft.dropout=0", f"output_dir={tmp_path / 'alone'}"), folder_of(tmp_path))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_failure_in_one_process_is_that_of_the_run(strategy, words, launch, ragged, disturbed, recorded, store):
    program = disturbed(f"if {SECOND} and len(calls) == 4: raise ValueError('the roof fell in')")
    done = launch(f"trainer={strategy}", *words, *ragged, *recorded[0], program=program)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: the roof fell in") == 1
    tracked = recorded[1]()
    if strategy == "ddp":
        assert tracked.info.status == "FAILED"
        trace = MlflowClient(store).download_artifacts(tracked.info.run_id, "traceback.txt")
        assert "the roof fell in" in Path(trace).read_text()
    else:  # it waits for the other's shards, and learns no more than that they will not come
        assert tracked.info.status in ("FAILED", "KILLED")


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_run_goes_on_in_another_number_of_processes(
    first, then, strategy, words, train, launch, ragged, same, disturbed, recorded, tmp_path
):
    saving = (*ragged, "peft.dropout=0", "trainer.save_steps=1", *recorded[0])
    option = {1: "trainer=default", 2: f"trainer={strategy}"}
    one = "True" if first == 1 else SECOND
    kill = disturbed(f"if {one} and len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)")
    killed = launch(option[first], *words, *saving, program=kill, count=first)
    assert killed.returncode != 0
    folder = folder_of(tmp_path)
    assert (folder / "last.ckpt").is_file()
    assert not (folder / "result.json").exists()
    done = launch(option[then], *words, *saving, count=then)
    assert done.returncode == 0, done.stderr
    assert "Resuming run" in done.stdout
    assert recorded[1]().info.status == "FINISHED"
    same(train(*ragged, "peft.dropout=0", "trainer.save_steps=1", f"output_dir={tmp_path / 'alone'}"), folder)


@pytest.mark.parametrize(
    ("strategy", "mistake", "sentence"),
    [
        ("ddp", "no.key=1", "no.key: the configuration has no key"),
        ("ddp", "trainer.max_epochs=0", "trainer.max_epochs=0 must be"),
        ("ddp", "trainer.batch_size=1", "trainer.batch_size=1 are the rows of all 2 processes together"),
        ("ddp", "data.max_length=100000", "data.max_length=100000 is more than"),
        ("ddp", "optim.lr=1e30", "The loss is nan"),
        ("fsdp", "optim.lr=1e30", "The loss is nan"),
    ],
)
def test_a_mistake_is_told_once(strategy, mistake, sentence, words, launch, ragged):
    done = launch(f"trainer={strategy}", *words, *ragged, mistake)
    assert done.returncode == 1
    assert done.stderr.count(f"sentexp: {sentence}") == 1
    assert "sentexp/cli/main.py" not in done.stderr
