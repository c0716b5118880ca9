"""What a run proposes fits it, is complete, and composes."""

import shlex

import pytest
from hydra.core.hydra_config import HydraConfig

from sentexp.config import load_config
from sentexp.run import proposals
from sentexp.run.proposals import next_commands
from sentexp.tracking.provenance import given_words


class Run:
    """As much of a result as its proposals need."""

    identity = "0123456789abcdef"


@pytest.fixture
def proposed(monkeypatch):
    """Return a function from the words of a command to the words of what it proposes."""

    def propose(*words, known=True):
        monkeypatch.setattr(proposals, "given_words", lambda **_: list(words) if known else None)
        return [shlex.split(line)[3:] for line in next_commands(Run(), load_config(*words))]

    return propose


def test_a_run_is_used_and_swept_with_the_words_that_were_given(proposed):
    words = ("data=csv", "data.path='my films.csv'", "peft.r=4", "tracking.experiment=films", "sweep.rerun=true")
    predict, serve, sweep = proposed(*words)
    assert predict == ["predict", "run=01234567", "tracking.experiment=films", "--text", "a warm and funny film"]
    assert serve == ["serve", "run=01234567", "tracking.experiment=films"]
    assert sweep == ["--multirun", "peft.r=2,4,8", *words[:2], words[3]]


@pytest.mark.parametrize(
    ("words", "axis"),
    [
        (["peft=lora", "peft.r=1"], "peft.r=1,2,4"),
        (["peft=qlora"], "peft.r=8,16,32"),
        (["peft=head", "optim.lr=0.001"], "optim.lr=0.0005,0.001,0.002"),
        (["peft=full"], "optim.lr="),
        (["peft=none", "task=causal_lm"], "peft=none,lora"),
    ],
)
def test_the_axis_fits_what_was_trained_and_every_value_composes(proposed, words, axis):
    sweep = proposed(*words)[2]
    assert sweep[1].startswith(axis)
    key, values = sweep[1].split("=")
    assert not [word for word in sweep[2:] if word.startswith(f"{key}=")]
    for value in values.split(","):
        load_config(*sweep[2:], f"{key}={value}")


def test_pairs_are_predicted_from_a_file_so_that_no_sentence_is_proposed(proposed):
    lines = proposed("data=csv", "data.path=films.csv", "data.text_pair=aspect")
    assert [line[0] for line in lines] == ["serve", "--multirun"]


def test_several_processes_and_python_propose_no_sweep(proposed):
    assert len(proposed("trainer=ddp")) == 2
    assert [line[0] for line in proposed("tracking=none", "output_dir=mine", known=False)] == ["predict", "serve"]
    assert proposed("tracking=none", "output_dir=mine")[1] == [
        "serve",
        "run=01234567",
        "tracking=none",
        "output_dir=mine",
    ]


def test_without_hydra_no_words_are_known():
    assert not HydraConfig.initialized()
    assert given_words(in_sweep=False) is None


@pytest.mark.parametrize("rank", [2, 6])
def test_ranks_of_an_orthogonal_start_are_even(rank, proposed):
    sweep = proposed("peft=lora", "peft.init=orthogonal", f"peft.r={rank}")[2]
    key, values = sweep[1].split("=")
    assert values == f"{rank},{2 * rank},{4 * rank}"
    for value in values.split(","):
        load_config(*sweep[2:], f"{key}={value}")


def test_a_learning_rate_is_scaled_once(proposed):
    sweep = proposed("peft=head", "optim.lr=0.001", "optim.lr_scale=3")[2]
    assert sweep[1:] == ["optim.lr=0.0015,0.003,0.006", "peft=head"]
