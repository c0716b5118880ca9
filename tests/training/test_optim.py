"""Optimizer groups and schedules."""

import pytest
import torch

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.training.optim import build_optimizer, build_schedule

CPU = torch.device("cpu")


def model():
    return torch.nn.ModuleDict(
        {"body": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4), "score": torch.nn.Linear(4, 2)}
    )


def test_matrices_are_decayed_and_vectors_are_not_and_the_head_has_its_own_rate():
    network = model()
    optim = load_config("optim.lr=1e-3", "optim.head_lr=1e-2", "optim.weight_decay=0.1").optim
    optimizer = build_optimizer(optim, network, network["score"], CPU)
    groups = {
        (group["lr"], group["weight_decay"]): {id(p) for p in group["params"]} for group in optimizer.param_groups
    }
    assert groups[0.001, 0.1] == {id(network["body"].weight)}
    assert groups[0.001, 0.0] == {id(network["body"].bias), id(network["norm"].weight), id(network["norm"].bias)}
    assert groups[0.01, 0.1] == {id(network["score"].weight)}


def test_frozen_parameters_are_left_out():
    network = model().requires_grad_(False)
    network["score"].requires_grad_(True)
    optimizer = build_optimizer(load_config().optim, network, network["score"], CPU)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["optim.schedule=linear", "optim.warmup_ratio=0.5"], [0, 0.5, 1, 0.5, 0]),
        (["optim.schedule=linear", "optim.warmup_steps=0"], [1, 0.75, 0.5, 0.25, 0]),
        (["optim.schedule=constant", "optim.warmup_steps=2"], [0, 0.5, 1, 1, 1]),
        (["optim.schedule=cosine", "optim.warmup_steps=0"], [1, 0.8536, 0.5, 0.1464, 0]),
    ],
)
def test_schedules(overrides, rates):
    network = model()
    optim = load_config("optim.lr=1", *overrides).optim
    optimizer = build_optimizer(optim, network, network["score"], CPU)
    schedule = build_schedule(optim, optimizer, 4)
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(rates, abs=1e-4)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_gpu_optimizers_are_refused_on_the_cpu(name):
    network = model()
    with pytest.raises(UserError, match=f"optim={name} needs a CUDA GPU: use optim=adamw"):
        build_optimizer(load_config(f"optim={name}").optim, network, network["score"], CPU)
