"""Shards: all that trains is sharded, comes together as it was, and is put back."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from sentexp.config import Strategy
from sentexp.distributed.processes import process_group
from sentexp.distributed.sharding import cut_like, gathered, gathered_state, is_sharded
from sentexp.models.adapters import load_trainable_state, trainable_state
from sentexp.run.build import build_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs

pytestmark = pytest.mark.usefixtures("launched")
CPU = torch.device("cpu")


@pytest.fixture
def models(config):
    """Return a function from overrides to the same model whole, and in shards."""

    def build(*overrides):
        built = []
        for strategy in ("single", "fsdp"):
            torch.manual_seed(0)
            built.append(
                build_model(prepare_inputs(resolve_inputs(config(*overrides, f"trainer.strategy={strategy}"))))[0]
            )
        return built

    return build


@pytest.mark.parametrize("overrides", [("peft=lora",), ("peft=full",), ("peft=full", "task=causal_lm"), ("peft=head",)])
def test_all_that_trains_is_sharded_and_comes_together_as_it_was(models, overrides):
    with process_group(Strategy.fsdp, CPU):
        whole, sharded = models(*overrides)
        assert (is_sharded(whole), is_sharded(sharded)) == (False, True)
        trained = [parameter for parameter in sharded.parameters() if parameter.requires_grad]
        assert trained
        assert all(isinstance(parameter, DTensor) for parameter in trained)
        expected, state = trainable_state(whole), trainable_state(sharded)
        assert expected.keys() == state.keys()
        for name in expected:
            torch.testing.assert_close(state[name], expected[name], rtol=0, atol=0)
        load_trainable_state(sharded, {name: value + 1 for name, value in expected.items()})
        for name, value in trainable_state(sharded).items():
            torch.testing.assert_close(value, expected[name] + 1, rtol=0, atol=0)


def test_tied_weights_come_together_once(models):
    with process_group(Strategy.fsdp, CPU):
        whole, sharded = models("peft=full", "task=causal_lm")
        state = gathered_state(sharded)
        assert gathered_state(whole) is None
        assert state.keys() == whole.state_dict().keys()
        assert state["lm_head.weight"] is state["model.embed_tokens.weight"]


def test_a_value_is_cut_like_its_parameter(models):
    with process_group(Strategy.fsdp, CPU):
        parameter = next(p for p in models("peft=full")[1].parameters() if p.ndim == 2)
        value = torch.randn(parameter.shape)
        assert torch.equal(gathered(cut_like(value, parameter)), value)
        assert cut_like(value, value) is value
