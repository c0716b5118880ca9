"""Optimizer groups and schedules."""

import copy
import sys

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from rounding import drift, rounding
from transformers import LlamaConfig, LlamaForSequenceClassification

from sentexp.config import Schedule, load_config
from sentexp.errors import UserError
from sentexp.models.adapters import HARMLESS, attach
from sentexp.models.structure import find_head
from sentexp.run.build import build_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.resolve import resolve_config
from sentexp.tracking.identity import settings
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


def gradients(steps):
    """Return gradients of a matrix and of a vector, for each step."""
    draw = torch.Generator().manual_seed(3)
    return [[torch.randn(3, 5, generator=draw), torch.randn(5, generator=draw)] for _ in range(steps)]


def trained(optimizer, parameters, steps=4):
    """Give an optimizer these gradients, and return where the parameters end."""
    for step in gradients(steps):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def body():
    """Return a network of a matrix and a vector, and these."""
    network = torch.nn.ModuleDict({"body": torch.nn.Linear(5, 3), "norm": torch.nn.LayerNorm(5, bias=False)})
    network["body"].bias = None
    return network, [network["body"].weight, network["norm"].weight]


def test_lion_is_its_algorithm():
    network, parameters = body()
    optim = load_config("optim=lion", "optim.lr=1e-2", "optim.weight_decay=0.1", "optim.betas=[0.8,0.95]").optim
    expected, means = [p.detach().clone() for p in parameters], [0.0, 0.0]
    for step in gradients(4):
        for place, (gradient, decay) in enumerate(zip(step, (0.1, 0.0), strict=True)):
            update = (0.8 * means[place] + 0.2 * gradient).sign()
            expected[place] = expected[place] - 1e-2 * (update + decay * expected[place])
            means[place] = 0.95 * means[place] + 0.05 * gradient
    found = trained(build_optimizer(optim, network, None, CPU), parameters)
    torch.testing.assert_close(found, expected)


def orthogonal(matrix):
    """Return Muon's fifth iterate for a matrix that is not higher than wide."""
    x = matrix.bfloat16() / (matrix.norm() + 1e-7)
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x.float()


def test_muon_moves_matrices_and_adamw_the_rest():
    network, parameters = body()
    words = ("optim.lr=1e-2", "optim.weight_decay=0.1", "optim.momentum=0.9", "optim.eps=1e-3")
    optimizer = build_optimizer(load_config("optim=muon", *words).optim, network, None, CPU)
    matrix, vector = (p.detach().clone() for p in parameters)
    other = torch.nn.Parameter(vector)
    adamw, mean = torch.optim.AdamW([other], 1e-2, eps=1e-3, weight_decay=0.0), torch.zeros(3, 5)
    for of_matrix, of_vector in gradients(4):
        mean = 0.9 * mean + 0.1 * of_matrix
        update = orthogonal(0.1 * of_matrix + 0.9 * mean)
        matrix = matrix * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * 5**0.5 * update
        other.grad = of_vector
        adamw.step()
    found = trained(optimizer, parameters)
    torch.testing.assert_close(found[0], matrix, atol=2e-3 * 4, rtol=0)  # the iteration is in bfloat16
    torch.testing.assert_close(found[1], other.detach())


class Speaker(torch.nn.Module):
    """A language model of a layer and an output."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 9, bias=False)

    def get_output_embeddings(self):  # noqa: D102
        return self.out


def test_muon_leaves_embeddings_and_head_to_adamw():
    network = torch.nn.ModuleDict({"embed": torch.nn.Embedding(4, 4), **model()})
    optimizer = build_optimizer(load_config("optim=muon").optim, network, network["score"], CPU)
    muon, adamw = optimizer.parts
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(network["body"].weight)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 6
    optimizer = build_optimizer(load_config("optim=muon").optim, Speaker(), None, CPU)
    assert [len(group["params"]) for group in optimizer.parts[0].param_groups] == [1]
    with pytest.raises(UserError, match="optim=muon moves matrices between embeddings and head, and none of them"):
        build_optimizer(load_config("optim=muon").optim, network.requires_grad_(False), None, CPU)


def test_schedule_free_trains_as_its_package_does():
    schedulefree = pytest.importorskip("schedulefree")
    network, parameters = body()
    optimizer = build_optimizer(load_config("optim=schedule_free", "optim.lr=1e-2").optim, network, None, CPU)
    x, z, squares = [p.detach().clone() for p in parameters], [p.detach().clone() for p in parameters], [0.0, 0.0]
    for step, of_step in enumerate(gradients(4), 1):
        for place, (gradient, decay) in enumerate(zip(of_step, (0.01, 0.0), strict=True)):
            y = 0.1 * z[place] + 0.9 * x[place]
            squares[place] = 0.999 * squares[place] + 0.001 * gradient**2
            update = gradient / ((squares[place] / (1 - 0.999**step)).sqrt() + 1e-8) + decay * y
            z[place] = z[place] - 1e-2 * update
            x[place] = (1 - 1 / step) * x[place] + z[place] / step
    found = trained(optimizer, parameters)
    torch.testing.assert_close(found, [0.1 * new + 0.9 * mean for new, mean in zip(z, x, strict=True)])
    assert isinstance(optimizer, schedulefree.AdamWScheduleFree)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'sentexp\[optimizers\]', or use optim=adamw"):
        build_optimizer(load_config("optim=schedule_free").optim, model(), None, CPU)


@pytest.mark.parametrize("name", ["muon", "lion", "schedule_free"])
def test_an_optimizer_goes_on_from_its_state(name):
    if name == "schedule_free":
        pytest.importorskip("schedulefree")
    optim = load_config(f"optim={name}", "optim.lr=1e-2").optim
    network, parameters = body()
    optimizer = build_optimizer(optim, network, None, CPU)
    trained(optimizer, parameters)
    other, copies = body()
    for copied, parameter in zip(copies, parameters, strict=True):
        copied.data.copy_(parameter.data)
    resumed = build_optimizer(optim, other, None, CPU)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    build_schedule(optim, resumed, 10)
    stepped = [group["lr"] for part in getattr(resumed, "parts", [resumed]) for group in part.param_groups]
    assert not any(stepped), "the schedule, which begins at 0, reaches the groups that are stepped"
    for group in resumed.param_groups:
        group["lr"] = 1e-2
    assert all(map(torch.equal, trained(resumed, copies), trained(optimizer, parameters)))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_lower_layers_have_lower_rates(method, config):
    network = build_model(prepare_inputs(resolve_inputs(resolve_config(config(f"peft={method}")))))[0]
    words = ("optim.layer_decay=0.5", "optim.lr=1e-3", "optim.head_lr=1e-2", "optim.weight_decay=0")
    optimizer = build_optimizer(load_config(*words).optim, network, find_head(network), CPU)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"score": 1e-2, "layers.1.": 0.5e-3, "layers.0.": 0.25e-3, "embed_tokens": 0.125e-3, "model.norm": 1e-3}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(next(lr for part, lr in expected.items() if part in name)), (
                name
            )


def test_a_scale_is_taken_into_the_rate():
    assert load_config("peft=full", "optim.lr_scale=3").optim.lr == 9e-5
    assert load_config("optim.lr=0.1", "optim.lr_scale=0.3").optim.lr == 0.03
    assert settings(load_config("peft=full", "optim.lr_scale=3")) == settings(load_config("peft=full", "optim.lr=9e-5"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim.schedule=linear"], "optim.schedule=linear lowers the learning rate, and optim=schedule_free averages"),
        (["optim.betas=[0,0.99]"], "it must be above 0, and 0.9 is usual"),
        (["trainer=fsdp"], "optim=schedule_free does not support shards"),
        (["peft=adalora"], "peft=adalora"),
    ],
)
def test_what_schedule_free_cannot_do_is_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config("optim=schedule_free", *overrides)


@pytest.mark.parametrize("schedule", [schedule.name for schedule in Schedule])
def test_muon_goes_with_every_schedule(schedule):
    network = model()
    optim = load_config("optim=muon", "optim.lr=1e-2", "optim.warmup_ratio=0", f"optim.schedule={schedule}").optim
    optimizer = build_optimizer(optim, network, network["score"], CPU)
    other = build_optimizer(load_config("optim.lr=1e-2").optim, network, network["score"], CPU)
    rates, others = build_schedule(optim, optimizer, 10), build_schedule(optim, other, 10)
    for _ in range(10):
        optimizer.step()
        other.step()
        rates.step()
        others.step()
        assert set(rates.get_last_lr()) == set(others.get_last_lr())
