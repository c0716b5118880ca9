"""Optimizer groups and schedules."""

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from rounding import drift, rounding
from transformers import LlamaConfig, LlamaForSequenceClassification

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.models.adapters import HARMLESS, attach
from sentexp.models.structure import find_head
from sentexp.training.optim import build_optimizer, build_schedule

CPU = torch.device("cpu")
pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in HARMLESS]


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


def adapted(*overrides):
    """Return a small Llama with a head that has an adapter, its configuration, and rows with their classes."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    network = LlamaForSequenceClassification(LlamaConfig(**shape))
    config = load_config("optim.lr=1e-2", "optim.eps=1e-2", "peft.r=2", *overrides)
    return attach(network, config.peft)[0], config


@pytest.mark.parametrize(("method", "decay"), [("lora", 0.0), ("lora", 0.1), ("dora", 0.0)])  # PEFT decays magnitudes
def test_lora_plus_is_that_of_peft(method, decay):
    """The ratio is of B and, as in PEFT and the authors' code, of vectors: DoRA's magnitudes."""
    found, config = adapted(f"peft={method}", "optim.lora_plus_ratio=16", f"optim.weight_decay={decay}")
    ours = build_optimizer(config.optim, found, find_head(found), CPU)
    expected, _ = adapted(f"peft={method}")
    options = {"lr": 1e-2, "loraplus_lr_ratio": 16, "loraplus_weight_decay": decay, "eps": 1e-2}
    theirs = create_loraplus_optimizer(expected, torch.optim.AdamW, **options)
    ids, labels = torch.arange(1, 13).view(2, 6), torch.tensor([0, 1])
    losses = []
    for _ in range(5):
        for network, optimizer in ((found, ours), (expected, theirs)):
            loss = network(ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[0::2] == pytest.approx(losses[1::2], abs=rounding() + drift(0.16, 5, 1e-2))
    plain = adapted(f"peft={method}")[1].optim
    assert {group["lr"] for group in build_optimizer(plain, found, find_head(found), CPU).param_groups} == {1e-2}


def test_the_head_keeps_its_own_rate_with_lora_plus():
    network, config = adapted("optim.lora_plus_ratio=4", "optim.head_lr=5e-3")
    groups = build_optimizer(config.optim, network, find_head(network), CPU).param_groups
    assert sorted((group["lr"], len(group["params"])) for group in groups) == [(5e-3, 1), (1e-2, 14), (4e-2, 14)]


def test_lora_plus_without_lora_is_refused():
    with pytest.raises(
        UserError, match=r"optim.lora_plus_ratio=16.0 is for the matrices B of LoRA, which peft=full does"
    ):
        load_config("peft=full", "optim.lora_plus_ratio=16")


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
