"""Arithmetic: parameters and bytes are exact, operations those that PyTorch counts, memory near what it keeps."""

import json

import numpy as np
import pytest
import torch
from storages import STORAGES

from sentexp.config import Precision, load_config
from sentexp.models.adapters import attach
from sentexp.models.dequantize import is_packed
from sentexp.models.loading import build_on_meta
from sentexp.models.pretrained import Backbone
from sentexp.plan.estimate import BYTES, Arithmetic, shape_of
from sentexp.plan.workload import Batches, Size
from sentexp.run.build import build_data, build_model, build_module, outline_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.memory import GIB

DEEPER = ("model.random.num_hidden_layers=6", "model.attn_implementation=eager")
"""The layers below the first adapter need no gradient of their inputs: many layers make that small."""


def arithmetic_of(config):
    """Return what the arithmetic says, and the model that is really built."""
    inputs = prepare_inputs(resolve_inputs(config), show=False)
    model, parameters = outline_model(inputs)
    shape = shape_of(model)
    shape.scores_kept = config.model.attn_implementation.name == "eager"
    arithmetic = Arithmetic(config=config, shape=shape, parameters=parameters)
    return arithmetic, inputs, *build_model(inputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["peft=lora", "peft.r=3"],
        ["peft=dora"],
        ["peft=ia3"],
        ["peft=full"],
        ["peft=head"],
        ["peft=none"],
        ["peft=lora", "peft.quantization=int8"],
        ["peft=lora", "task=causal_lm", "task.template='{text}'"],
    ],
)
def test_parameters_and_weight_bytes_are_those_of_the_real_model(config, overrides, precision):
    arithmetic, _, model, parameters = arithmetic_of(config(*overrides, f"trainer.precision={precision}"))
    assert arithmetic.parameters == parameters
    held = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in model.named_parameters()
        if "original_module" not in name
    )
    assert arithmetic.weight_bytes(Precision[precision]) == held


@pytest.mark.parametrize("double", [True, False])
def test_packed_weights_take_half_a_byte_and_their_scales(config, double):
    settings = config("peft=qlora", f"peft.double_quant={double}", "trainer.precision=fp32")
    arithmetic, _, model, parameters = arithmetic_of(settings)
    assert arithmetic.parameters == parameters
    plain = config("peft=lora", "trainer.precision=fp32")
    unpacked = Arithmetic(config=plain, shape=arithmetic.shape, parameters=parameters)
    saved = unpacked.weight_bytes(Precision.fp32) - arithmetic.weight_bytes(Precision.fp32)
    layers = [module for module in model.modules() if getattr(module, "quant_state", None) is not None]
    real = sum(4 * module.weight.quant_state.shape.numel() - module.weight.numel() for module in layers)
    state = [module.weight.quant_state for module in layers]
    scales = sum(one.absmax.numel() * one.absmax.element_size() for one in state)
    scales += sum(one.state2.absmax.numel() * 4 for one in state) if double else 0
    assert len(layers) == 14
    assert saved == pytest.approx(real - scales, rel=0.002)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_of_torchao_and_hqq_take_what_they_hold(config, storage, precision):
    arithmetic, _, model, parameters = arithmetic_of(
        config(f"peft.quantization={storage}", f"trainer.precision={precision}")
    )
    assert arithmetic.parameters == parameters
    packed = [module for module in model.modules() if is_packed(module)]
    held = sum(value.numel() * value.element_size() for module in packed for value in stored_in(module))
    plain = config("peft=lora", f"trainer.precision={precision}")
    dense = sum(BYTES[Precision[precision]] * module.in_features * module.out_features for module in packed)
    unpacked = Arithmetic(config=plain, shape=arithmetic.shape, parameters=parameters)
    saved = unpacked.weight_bytes(Precision[precision]) - arithmetic.weight_bytes(Precision[precision])
    assert len(packed) == 14
    assert saved == dense - held


def stored_in(module):
    """Return the tensors of a packed layer, but for torchao's scales of rows, which are few in real models."""
    if hasattr(module, "W_q"):
        return module.W_q, module.meta["scale"], module.meta["zero"]
    return (module.weight.qdata,)


def count_saved(module, batch, precision):
    """Return the bytes that PyTorch keeps for the backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its place is not taken again
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        module.classifier.losses(batch.texts, batch.labels)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_near_what_pytorch_keeps(config, precision, checkpointing):
    settings = config(
        "peft=lora", "peft.r=2", "model.random.num_hidden_layers=8", f"trainer.precision={precision}",
        f"trainer.gradient_checkpointing={checkpointing}", "trainer.batch_size=32", "trainer.padding_free=false",
    )  # fmt: skip
    arithmetic, inputs, model, _ = arithmetic_of(settings)
    module, batch = build_module(inputs, model).train(), next(iter(build_data(inputs).train_dataloader()))
    rows, width = batch.texts.ids.shape
    size = Size(rows=rows, width=width, tokens=rows * width)
    told = arithmetic.activations(size, Precision[precision])
    if checkpointing:  # one layer at a time is computed again, which is not kept when the loss is
        told -= arithmetic.activations(size, Precision[precision]) - (
            8 * size.tokens * 64 * (4 if precision == "fp32" else 2)
        )
    assert 0.6 < told / count_saved(module, batch, precision) < 1.7


@pytest.fixture
def seven_billion(tmp_path):
    """Return the shapes of Llama-2-7B without a weight: its published configuration."""
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    return Backbone(folder=tmp_path, revision="0")


def large(backbone, *overrides):
    config = load_config("model=tiny", *overrides)
    with torch.device("meta"):
        model, parameters = attach(build_on_meta(backbone, ["negative", "positive"]), config.peft)
    return Arithmetic(config=config, shape=shape_of(model), parameters=parameters)


def batches(rows, width):
    """Return a hundred batches of one shape."""
    order = [(list(range(rows)), rows)] * 100
    full = np.full(100, rows)
    return Batches(order=order, rows=full, width=np.full(100, width), computed=full * width, tokens=100 * rows * width)


def test_a_model_that_no_laptop_holds_is_counted_from_its_configuration(seven_billion):
    arithmetic = large(seven_billion, "peft=lora", "peft.r=16")
    assert arithmetic.parameters.trainable["adapter"] == 39_976_960
    assert arithmetic.parameters.total - 39_976_960 == 6_607_343_616 + 2 * 4096  # Llama-2-7B without its output matrix
    assert arithmetic.weight_bytes(Precision.bf16) / GIB == pytest.approx(12.45, abs=0.05)
    packed = large(seven_billion, "peft=qlora", "peft.r=16")
    assert packed.weight_bytes(Precision.bf16) / GIB == pytest.approx(3.5, abs=0.1)


def test_what_fits_depends_on_the_memory(seven_billion):
    lora, qlora = large(seven_billion, "peft=lora"), large(seven_billion, "peft=qlora", "trainer.precision=bf16")
    full = large(seven_billion, "peft=full")
    size = batches(16, 256).largest_size
    assert lora.halved_until_it_fits(size, Precision.fp32, 14 * GIB) is None  # 25 GiB of weights
    assert qlora.halved_until_it_fits(size, Precision.bf16, 14 * GIB) is not None
    fitting = lora.halved_until_it_fits(size, Precision.bf16, 22 * GIB)
    assert fitting.batch_size < 16
    assert fitting.batch_size * fitting.accumulate_grad_batches == 16
    assert lora.halved_until_it_fits(size, Precision.bf16, 75 * GIB).batch_size == 16
    assert full.halved_until_it_fits(size, Precision.bf16, 75 * GIB) is None  # 12 bytes for each weight and its moments
