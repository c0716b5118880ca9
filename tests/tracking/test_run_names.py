"""What runs of a sweep are called."""

import pytest

from sentexp.tracking.run_names import run_names


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([["peft.r=8", "seed=1"], ["peft.r=16", "seed=1"]], ["r=8", "r=16"]),
        ([["peft.r=8", "optim.lr=0.0002"], ["peft.r=16", "optim.lr=0.0002"], ["peft.r=8", "optim.lr=0.001"]],
         ["r=8 lr=2e-4", "r=16 lr=2e-4", "r=8 lr=1e-3"]),
        ([["data=sst2", "model=gpt2"], ["data=fpb", "model=gpt2"]], ["data=sst2", "data=fpb"]),
        ([["optim.name=adamw", "model.name=a"], ["optim.name=sgd", "model.name=b"]],
         ["optim.name=adamw model.name=a", "optim.name=sgd model.name=b"]),
        ([["peft.r=8", "seed=1"]], ["r=8 seed=1"]),
        ([[]], ["defaults"]),
        ([["peft.dropout=0.05"], ["peft.dropout=0"]], ["dropout=0.05", "dropout=0"]),
        ([["optim.lr=nan"], ["optim.lr=inf"]], ["lr=nan", "lr=inf"]),
        ([["optim.lr=0.00012345678"], ["optim.lr=1"]], ["lr=0.00012345678", "lr=1"]),
        ([["data.train_subset=2000.0"], ["data.train_subset=0.5"]], ["train_subset=2000", "train_subset=0.5"]),
    ],
)  # fmt: skip
def test_runs_are_named_by_what_tells_them_apart(runs, names):
    assert run_names(runs) == names
