"""Arithmetic: parameters and bytes are exact, operations those that PyTorch counts, memory near what it keeps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sentexp.config import Precision, load_config
from sentexp.models.adapters import attach
from sentexp.models.backbone import Backbone, outline
from sentexp.plan.estimate import MACHINES, Arithmetic, Machine, shape_of
from sentexp.plan.workload import Batches, Size, workload
from sentexp.run.build import build_data, build_model, build_module, outline_model
from sentexp.run.inputs import find, gather
from sentexp.system.hardware import GIB

DEEPER = ("model.random.num_hidden_layers=6", "model.attn_implementation=eager")
"""The layers below the first adapter need no gradient of their inputs: many layers make that small."""


def arithmetic_of(config):
    """Return what the arithmetic says, and the model that is really built."""
    materials = gather(find(config), show=False)
    model, parameters = outline_model(materials)
    shape = shape_of(model)
    shape.scores_kept = config.model.attn_implementation.name == "eager"
    arithmetic = Arithmetic(config=config, shape=shape, parameters=parameters)
    return arithmetic, materials, *build_model(materials)


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


@pytest.mark.parametrize(
    "overrides",
    [
        ["peft=lora", "peft.r=4"],
        ["peft=lora", "peft.r=32"],
        ["peft=ia3"],
        ["peft=full"],
        ["peft=head"],
        ["peft=lora", "trainer.gradient_checkpointing=true"],
        ["peft=full", "trainer.gradient_checkpointing=true"],
        ["peft=lora", "task=causal_lm", "task.template='{text}'", "task.loss=full"],
    ],
)
def test_operations_are_those_that_pytorch_counts(config, overrides):
    settings = config(*overrides, *DEEPER, "trainer.precision=fp32", "trainer.padding_free=false")
    arithmetic, materials, model, _ = arithmetic_of(settings)
    work = workload(materials, materials.tokens, settings.trainer)
    module, batch = build_module(materials, model).train(), next(iter(build_data(materials).train_dataloader()))
    counter = FlopCounterMode(display=False)
    with counter:
        module.classifier.losses(batch.texts, batch.labels).sum().backward()
    assert arithmetic.training(work.train)[0] == pytest.approx(counter.get_total_flops(), rel=0.05)
    counter = FlopCounterMode(display=False)
    module.eval()
    batch = next(iter(build_data(materials).test_dataloader()))
    with counter, torch.no_grad():
        module.classifier(batch.texts)
    assert arithmetic.forward(work.test)[0] == pytest.approx(counter.get_total_flops(), rel=0.05)


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
    arithmetic, materials, model, _ = arithmetic_of(settings)
    module, batch = build_module(materials, model).train(), next(iter(build_data(materials).train_dataloader()))
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
        model, parameters = attach(outline(backbone, ["negative", "positive"]), config.peft)
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


def test_what_fits_depends_on_the_machine(seven_billion):
    work = workload_of(16, 256)
    lora, qlora = large(seven_billion, "peft=lora"), large(seven_billion, "peft=qlora", "trainer.precision=bf16")
    full = large(seven_billion, "peft=full")
    by_name = {machine.name: machine for machine in MACHINES}
    assert lora.largest_that_fits(work, by_name["T4 16 GB"]) is None  # float32 there: 25 GiB of weights
    assert qlora.largest_that_fits(work, by_name["T4 16 GB"]) is not None
    fitting = lora.largest_that_fits(work, by_name["RTX 4090 24 GB"])
    assert fitting.batch_size < 16
    assert fitting.batch_size * fitting.accumulate_grad_batches == 16
    assert lora.largest_that_fits(work, by_name["H100 80 GB"]).batch_size == 16
    assert full.largest_that_fits(work, by_name["H100 80 GB"]) is None  # 12 bytes for each weight and its moments


def workload_of(rows, width):
    from sentexp.plan.workload import Workload

    part = batches(rows, width)
    return Workload(train=part, validation=part, test=part, micro_batches=300, steps=300, evaluations=2)


def test_time_follows_operations_rate_and_bandwidth(seven_billion):
    work = workload_of(16, 256)
    machine = Machine(name="x", memory=80, bandwidth=1e15, bf16=1e14, fp16=1e14, fp32=1e13)
    lora = large(seven_billion, "peft=lora")
    seconds = (300 * lora.training(work.train)[0] + 300 * lora.forward(work.test)[0]) / (0.3 * 1e14)
    assert lora.seconds(work, machine) == pytest.approx(seconds)
    assert large(seven_billion, "peft=qlora").seconds(work, machine) == pytest.approx(1.5 * seconds)
    slow = Machine(name="x", memory=80, bandwidth=1e6, bf16=1e14, fp16=1e14, fp32=1e13)
    assert lora.seconds(work, slow) == pytest.approx(900 * lora.weight_bytes(Precision.bf16) / 1e6)
    small = replace(lora, shape=replace(lora.shape, layers=10**6))
    assert small.seconds(work, replace(machine, bf16=1e30)) == pytest.approx(300 * 2200 + 300 * 950)
    no_bf16 = Machine(name="x", memory=80, bandwidth=1e15, bf16=0, fp16=1e14, fp32=1e13)
    assert lora.seconds(work, no_bf16) == pytest.approx(10 * seconds)
