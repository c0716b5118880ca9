"""Grouped layers: their products are those of the layers side by side; where stacked weights stand."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sentexp.models.fast.lora_linear import AdapterParts, lora_linear
from sentexp.models.fast.stacked_lora import ADAPTER, Adapters, Group, _stack

WIDE = torch.float64
DORA = {"use_dora": True, "lora_alpha": 3}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, trained=True):
    return torch.randn(*shape, dtype=WIDE, requires_grad=trained)


class Attention(nn.Module):
    """Three linear layers that read the same."""

    def __init__(self, bias):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, width, bias=bias, dtype=WIDE) for width in (4, 2, 3))

    @property
    def parts(self):
        """The layers, wrapped by PEFT or not."""
        return [self.q, self.k, self.v]


def wrapped(targets, bias=True, **options):
    """Return the layers, those in `targets` with adapters that change what they say, in float64."""
    model = get_peft_model(Attention(bias), LoraConfig(r=2, target_modules=targets, **options))
    model.to(WIDE)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
        elif "magnitude" in name:
            parameter.data *= torch.rand_like(parameter) + 0.5
    return model.get_base_model()


def grouped(layers, training=False):
    """Return what a product with these layers needs."""
    group = Group(layers.parts)
    return group.with_adapters([one for one in Adapters([group], WIDE).convert(training) if one is not None])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", [["q", "k", "v"], ["q", "v"], ["k"]])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_alpha": 3}, {"rank_pattern": {"[kv]": 3}}, DORA])
def test_a_group_is_its_layers_side_by_side(bias, targets, options):
    layers, x = wrapped(targets, bias, **options), random(5, 6)
    trained = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    assert len(trained) == (3 if options is DORA else 2) * len(targets)
    found, expected = lora_linear(x, grouped(layers)), torch.cat([part(x) for part in layers.parts], 1)
    torch.testing.assert_close(found, expected)
    weights = random(*expected.shape, trained=False)
    gradients = [torch.autograd.grad((out * weights).sum(), [x, *trained]) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_layers_without_an_adapter_are_grouped_too():
    layers, x = Attention(bias=True), random(5, 6)
    found = lora_linear(x, Group(layers.parts).with_adapters([]))
    torch.testing.assert_close(found, torch.cat([part(x) for part in layers.parts], 1))


@pytest.mark.parametrize("options", [{}, DORA])
@pytest.mark.parametrize("targets", [[], ["k"], ["q", "k", "v"]])
def test_what_is_compiled_computes_the_same(targets, options, monkeypatch):
    layers, x = wrapped(targets, **options) if targets else Attention(bias=True).requires_grad_(False), random(5, 6)
    trained = [x, *(parameter for parameter in layers.parameters() if parameter.requires_grad)]
    weights, found = random(5, 9, trained=False), []
    for compiling in (True, False):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda there=compiling: there)
        out = lora_linear(x, grouped(layers))
        found += [[out, *torch.autograd.grad((out * weights).sum(), trained)]]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("targets", [["k"], ["q", "k", "v"]])
def test_dora_drops_what_it_adds_and_not_the_frozen_product(targets):
    layers, x = wrapped(targets, lora_dropout=0.5, **DORA), random(5, 6)
    trained = [x, *(parameter for parameter in layers.parameters() if parameter.requires_grad)]
    masks = [torch.bernoulli(torch.full_like(x, 0.5)) * 2 for _ in layers.parts]

    def expected():
        for part, mask in zip(layers.parts, masks, strict=True):
            base = part.base_layer if hasattr(part, "base_layer") else part
            if base is part:
                yield base(x)
                continue
            delta = part.scaling[ADAPTER] * part.lora_B[ADAPTER].weight @ part.lora_A[ADAPTER].weight
            norm = (base.weight + delta).norm(dim=1).detach()
            factor, read = part.lora_magnitude_vector[ADAPTER].weight / norm, x * mask
            yield base(x) + (factor - 1) * (read @ base.weight.T) + factor * (read @ delta.T)

    linear = grouped(layers, training=True)
    drawn = iter(masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterParts, "masks", lambda self, _: list(drawn))
        found = lora_linear(x, linear)
    parts = list(expected())
    weights = random(5, 9, trained=False)
    torch.testing.assert_close(found, torch.cat(parts, 1))
    gradients = [torch.autograd.grad((out * weights).sum(), trained) for out in (found, torch.cat(parts, 1))]
    torch.testing.assert_close(*gradients)


def test_an_adapter_that_is_switched_off_says_nothing():
    layers, x = wrapped(["q", "v"]), random(5, 6)
    for part in (layers.q, layers.v):
        part.enable_adapters(enabled=False)
    torch.testing.assert_close(lora_linear(x, grouped(layers)), torch.cat([part(x) for part in layers.parts], 1))


def test_dropout_is_that_of_each_module_and_of_training_only():
    layers, x = wrapped(["q", "k", "v"], lora_dropout=0.25), random(3, 6, trained=False)
    whole = lora_linear(x, grouped(layers))
    base = torch.cat([part.get_base_layer()(x) for part in layers.parts], 1)
    training = grouped(layers, training=True)
    assert training.adapters[0].parts.dropout == 0.25
    drawn = torch.stack([lora_linear(x, training) for _ in range(4000)])
    error = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - whole).abs() < 5 * error).all()
    # The variance of a sum over inputs that are kept with probability 1 - p, and then divided by it: in each module.
    start = 0
    for part, width in zip(layers.parts, (4, 2, 3), strict=True):
        delta = part.scaling[ADAPTER] * part.lora_B[ADAPTER].weight @ part.lora_A[ADAPTER].weight
        expected = 0.25 / 0.75 * (x.square() @ delta.T.square())
        found = drawn[:, :, start : start + width].var(0)
        torch.testing.assert_close(found, expected.detach(), rtol=0.15, atol=0)
        start += width
    assert (whole - base).abs().max() > 0.1
    # The masks are of each module's own: what q loses says nothing about what v loses.
    lost = (drawn - whole)[:, 0]
    assert torch.corrcoef(lost.T)[:4, 6:].abs().max() < 0.1


def test_the_same_seed_drops_the_same():
    training, x = grouped(wrapped(["q", "v"], lora_dropout=0.5), training=True), random(3, 6)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(lora_linear(x, training))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_generator_of_a_runs_own_drops_as_torchs_does():
    layers, x = wrapped(["q", "v"], lora_dropout=0.5), random(3, 6)
    torch.manual_seed(3)
    expected = lora_linear(x, grouped(layers, training=True))
    group, state = Group(layers.parts), torch.get_rng_state()
    (adapter,) = Adapters([group], WIDE).convert(training=True, generator=torch.Generator().manual_seed(3))
    assert torch.equal(lora_linear(x, group.with_adapters([adapter])), expected)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own goes on as if nothing had been


def values(*shapes):
    return [nn.Parameter(torch.randn(shape), requires_grad=False) for shape in shapes]


def test_stacked_weights_are_views_of_one_matrix_and_keep_their_values():
    weights = values((4, 3), (2, 3), (2, 3))
    before = [weight.clone() for weight in weights]
    whole = _stack(weights)
    assert torch.equal(whole, torch.cat(before))
    assert all(torch.equal(weight, value) for weight, value in zip(weights, before, strict=True))
    weights[1].zero_()
    assert torch.equal(whole[4:6], torch.zeros(2, 3))


def test_stacked_weights_are_not_copied_again():
    weights = values((4, 3), (2, 3), (2, 3))
    whole = _stack(weights)
    again = _stack(weights)
    assert again.data_ptr() == whole.data_ptr()
    assert torch.equal(again, whole)
    part = _stack(weights[1:])  # a part of them stands further behind
    assert part.data_ptr() == weights[1].data_ptr() == whole[4].data_ptr()
    assert torch.equal(part, whole[4:])


def test_a_single_weight_stays_where_it_is():
    (weight,) = values((4, 3))
    assert _stack([weight]).data_ptr() == weight.data_ptr()


def test_a_group_stacks_weights_anew_that_have_moved():
    layers = Attention(bias=True).requires_grad_(False)
    group, x = Group(layers.parts), random(5, 6)
    before = lora_linear(x, group.with_adapters([]))
    place = group.weight.data_ptr()
    assert group.weight.data_ptr() == layers.q.weight.data_ptr() == place
    layers._apply(torch.clone)
    assert group.weight.data_ptr() == layers.q.weight.data_ptr() != place
    torch.testing.assert_close(lora_linear(x, group.with_adapters([])), before)
    layers.k.weight.mul_(2)
    layers.v.bias.add_(1)
    expected = torch.cat([part(x) for part in layers.parts], 1)
    torch.testing.assert_close(lora_linear(x, group.with_adapters([])), expected)


def test_neighbours_in_memory_are_not_taken_for_one_matrix():
    memory = np.arange(18, dtype=np.float32)
    weights = [nn.Parameter(torch.from_numpy(part).view(-1, 3), requires_grad=False) for part in np.split(memory, [12])]
    assert weights[1].data_ptr() == weights[0].data_ptr() + weights[0].nbytes
    whole = _stack(weights)
    assert whole.untyped_storage().nbytes() >= whole.nbytes == 72
    assert torch.equal(whole, torch.arange(18.0).view(6, 3))
    assert all(weight.untyped_storage().data_ptr() == whole.data_ptr() for weight in weights)


@pytest.mark.parametrize(
    "parts",
    [
        lambda whole: [whole[2:4], whole[:2]],  # in another order
        lambda whole: [whole[:2], whole[3:5]],  # with a gap
        lambda whole: [whole[:2], whole[:2]],  # one weight twice
        lambda whole: [whole[:3].T, whole[3:6].T],  # in order, but turned
    ],
)
def test_other_views_of_one_storage_are_copied(parts):
    whole = torch.arange(18.0).view(6, 3)
    weights = [nn.Parameter(part, requires_grad=False) for part in parts(whole)]
    expected = torch.cat([weight.clone() for weight in weights])
    stacked = _stack(weights)
    assert torch.equal(stacked, expected)
    assert torch.equal(torch.cat(list(weights)), expected)
    assert stacked.data_ptr() != whole.data_ptr()
    assert torch.equal(whole, torch.arange(18.0).view(6, 3))
