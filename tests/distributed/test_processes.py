"""Several processes of one run: what they tell each other, and the result of one process."""

import pytest
import torch

from sentexp.config import Strategy, load_config
from sentexp.distributed import processes
from sentexp.distributed.group import Group
from sentexp.distributed.launch import Launch
from sentexp.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def third(monkeypatch):
    """Let this process be the third of four, without any other to speak to."""
    group = Group(Launch("torchrun", 2, 4, 2), None)
    monkeypatch.setattr(processes._state, "group", group)


def test_alone_everything_is_one_s_own():
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.shard_rows([4, 2, 7]) == [4, 2, 7]
    assert processes.all_gather("word") == ["word"]
    assert processes.run_on_main(lambda: 3) == 3


def test_what_the_main_process_alone_does_nests_and_returns_its_value():
    calls = []

    @processes.main_process_only
    def outer(value, *, more):
        calls.append(value)
        return inner(value) + more

    @processes.main_process_only
    def inner(value):
        return 2 * value

    assert outer(3, more=1) == 7
    assert calls == [3]


@pytest.mark.usefixtures("third")
def test_only_the_main_process_writes():
    written = []
    processes.main_process_writes(written.append)("by another")
    assert written == []


@pytest.mark.usefixtures("third")
def test_no_message_is_sent_while_the_others_wait_for_the_main_process(monkeypatch):
    monkeypatch.setattr(processes._state, "in_main", True)
    assert processes.run_on_main(lambda: 3) == 3
    with pytest.raises(AssertionError, match="wait elsewhere"):
        processes.all_gather()


@pytest.mark.usefixtures("third")
def test_each_row_of_a_batch_is_one_process_s(monkeypatch):
    assert processes.shard_rows([10, 11, 12, 13, 14, 15, 16]) == [12, 16]
    assert processes.shard_rows([10, 11]) == []
    every = []
    for rank in range(4):
        monkeypatch.setattr(processes._state, "group", Group(Launch("srun", rank, 4, rank), None))
        every += processes.shard_rows(list(range(11)))
    assert sorted(every) == list(range(11))


@pytest.mark.usefixtures("launched")
def test_words_of_any_shape_are_exchanged_and_sums_are_in_place():
    with processes.process_group(Strategy.ddp, CPU):
        (found,) = processes.all_gather([torch.ones(3, 2), None])
        assert found[0].shape == (3, 2)
        assert found[1] is None
        tensor = torch.tensor([2.0])
        processes.all_reduce_sum([tensor])
        assert tensor == 2.0
    assert processes.world_size() == 1


def test_what_shards_cannot_do_is_refused():
    for override in ("peft=qlora", "optim=adafactor", "trainer.precision=fp16"):
        with pytest.raises(UserError, match="trainer=fsdp"):
            load_config("trainer=fsdp", override)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_torchrun_gives_the_same(strategy, train, launched, ragged, same, monkeypatch, tmp_path):
    """Shards go through other layers and another AdamW."""
    together = train(f"trainer={strategy}", *ragged)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    same(train(*ragged, f"output_dir={tmp_path / 'alone'}"), together.folder)


@pytest.mark.parametrize(
    ("strategy", "recipes"),
    [
        ("ddp", ("peft.dropout=0.2", "task.r_drop=1", "task.neftune_alpha=5", "trainer.average=ema")),
        ("fsdp", ("peft.dropout=1e-6", "task.r_drop=1")),  # other layers draw other masks
        ("fsdp", ("task.neftune_alpha=5", "seed=7")),
    ],
    ids=["ddp", "fsdp, two passes", "fsdp, noise"],
)
def test_recipes_go_through_several_processes(strategy, recipes, train, launched, ragged, same, monkeypatch, tmp_path):
    together = train(f"trainer={strategy}", *ragged, *recipes)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    same(train(*ragged, *recipes, f"output_dir={tmp_path / 'alone'}"), together.folder)


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
