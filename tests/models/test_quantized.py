"""Frozen weights that torchao or HQQ keep: products and gradients are those of the weights unpacked, in every run."""

from importlib import util

import pyarrow.parquet as pq
import pytest
import torch
from kills import Killed, killed_at
from peft import PeftModel
from rounding import drift, rounding, smooth
from safetensors.torch import load_file
from storages import EXTRA, STORAGES
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification, TorchAoConfig

from sentexp.config import Attention, HeadOnly, Precision, Quantization, from_conf, load_config
from sentexp.errors import UserError
from sentexp.inference.scorer import Scorer
from sentexp.models import quantized
from sentexp.models.adapters import HARMLESS, attach
from sentexp.models.dequantize import dense_weight, is_packed, unpack
from sentexp.models.fast import llama
from sentexp.models.loading import Loading, load_classifier, load_language_model, load_tokenizer
from sentexp.models.merge import merge
from sentexp.models.pretrained import locate_backbone
from sentexp.models.quantized import pack, quantization_config
from sentexp.models.saved import find_base, read_trained
from sentexp.tracking.predictions import file_name, read_predictions

STEPS = 8
STEADY = ("optim.lr=1e-2", "optim.eps=1e-2", "trainer.max_epochs=2", "trainer.eval_steps=1000", "baseline=false")
"""An `eps` of AdamW that does not make whole steps of rounding; the last weights are the best."""
CPU = torch.device("cpu")
pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in HARMLESS]
storages = pytest.mark.parametrize("storage", STORAGES)


def loaded(storage, precision=Precision.fp32, language_model=False):
    """Return the tiny model with its layers packed."""
    config = load_config("model=tiny", f"peft.quantization={storage}")
    backbone = locate_backbone(config.model)
    load = Loading(storage=config.peft, attention=Attention.auto, precision=precision, device=CPU)
    tokenizer = load_tokenizer(backbone)
    if language_model:
        return load_language_model(backbone, tokenizer, load)
    return load_classifier(backbone, tokenizer, ["bad", "good"], load)


def packed_layers(model):
    return {path: module for path, module in model.named_modules() if is_packed(module)}


@storages
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16], ids=lambda one: one.name)
@pytest.mark.parametrize("language_model", [False, True], ids=["classifier", "language model"])
def test_linear_layers_are_packed_and_nothing_else(storage, precision, language_model):
    model = loaded(storage, precision, language_model)
    packed = packed_layers(model)
    assert len(packed) == 14
    plain = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)} - packed.keys()
    assert plain == {"lm_head" if language_model else "score"}
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.model.layers.parameters())
    assert held > 0
    for module in packed.values():
        assert not any(parameter.requires_grad for parameter in module.parameters())


@storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_and_gradients_are_those_of_the_weights_unpacked(storage, dtype):
    model = loaded(storage, Precision.fp32 if dtype is torch.float32 else Precision.bf16)
    reference = load_classifier_plainly()
    terms = 1 if dtype is torch.bfloat16 else 64
    for path, layer in packed_layers(model).items():
        weight = dense_weight(layer)
        assert weight.dtype is dtype
        x = torch.randn(3, 5, weight.shape[1], dtype=dtype, requires_grad=True)
        out = layer(x)
        gradient = torch.randn_like(out)
        out.backward(gradient)
        exact = x.detach().double() @ weight.double().T, gradient.double() @ weight.double()
        for found, expected in zip((out, x.grad), exact, strict=True):
            tolerance = rounding(float(expected.abs().max()), dtype, terms=terms, sums=1)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
        lost = (weight.float() - reference.get_submodule(path).weight).abs().max()
        assert 0 < lost < 0.2 * reference.get_submodule(path).weight.abs().max()


def load_classifier_plainly():
    backbone = locate_backbone(load_config("model=tiny").model)
    return AutoModelForSequenceClassification.from_pretrained(backbone.folder, num_labels=2)


@pytest.mark.parametrize("storage", [one for one in STORAGES if "weight_only" in one.id])
def test_torchaos_own_products_are_the_same(storage):
    for layer in packed_layers(loaded(storage)).values():
        x = torch.randn(7, layer.in_features)
        own = nn.functional.linear(x, layer.weight)
        torch.testing.assert_close(layer(x), own, rtol=0, atol=rounding(float(own.abs().max()), sums=1))


@storages
def test_no_unpacked_weight_is_kept_for_the_backward_pass(storage):
    layer = loaded(storage).model.layers[0].mlp.up_proj
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    x = torch.randn(2, layer.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert sum(kept) < layer.in_features * layer.out_features / 8


@storages
def test_unpacked_layers_are_ordinary_and_compute_the_same(storage):
    model, ids = loaded(storage), torch.arange(12).view(2, 6)
    with torch.no_grad():
        before = model(ids).logits
        unpack(model)
        assert not packed_layers(model)
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=rounding(sums=256))


@storages
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("task", [[], ["task=causal_lm", "task.template=auto", "task.label_words=[bad,good]"]])
def test_rows_without_padding_and_weights_unpacked_once_give_the_same_run(
    storage, method, task, train, tmp_path, monkeypatch
):
    calls, original = [], llama.decoder_layer
    monkeypatch.setattr(llama, "decoder_layer", lambda *given: (calls.append(1), original(*given))[1])
    words = [f"peft={method}", f"peft.quantization={storage}", *task, *STEADY]
    ways = {"packed": [], "padded": ["trainer.padding_free=false"], "dense": ["model.keep_dequantized=true"]}
    found, fast = {}, {}
    for name, way in ways.items():
        calls.clear()
        found[name] = train(*words, *way, f"output_dir={tmp_path / name}")
        fast[name] = bool(calls)
    assert fast == {"packed": True, "padded": False, "dense": True}
    tolerance = rounding() + drift(1e-2, STEPS, 1e-2)
    weights = {name: load_file(result.weights / "adapter_model.safetensors") for name, result in found.items()}
    for name, result in found.items():
        assert result.identity == found["packed"].identity
        assert smooth(result.metrics) == pytest.approx(smooth(found["packed"].metrics), abs=tolerance)
        for key, value in weights[name].items():
            torch.testing.assert_close(value, weights["packed"][key], atol=tolerance, rtol=0)
    moved = max(float(value.abs().max()) for key, value in weights["packed"].items() if "lora_B" in key)
    assert moved > 10 * tolerance


@storages
def test_what_is_saved_is_read_by_the_scorer_and_by_plain_peft_and_merged(storage, train):
    result = train("peft=lora", f"peft.quantization={storage}", *STEADY)
    trained = read_trained(result.weights)
    expected = torch.tensor(read_predictions(result.folder / file_name("test")).probabilities)
    texts = pq.read_table(result.folder / file_name("test")).column("text").to_pylist()
    torch.testing.assert_close(torch.tensor(Scorer(trained).probabilities(texts)), expected, rtol=0, atol=rounding())
    base = find_base(trained)
    tokenizer = load_tokenizer(base)
    given = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    plain = plainly_packed(storage, base.folder)
    plain.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        untrained = plain(**given).logits.softmax(-1)
        model = PeftModel.from_pretrained(plain, result.weights).eval()
        torch.testing.assert_close(model(**given).logits.softmax(-1), expected, rtol=0, atol=rounding(sums=256))
        merged = merge(trained, base)
        assert not packed_layers(merged)
        torch.testing.assert_close(merged(**given).logits.softmax(-1), expected, rtol=0, atol=rounding(sums=256))
    assert (untrained - expected).abs().max() > 100 * rounding()


def plainly_packed(storage, folder):
    """Return the base as anybody packs it, with transformers and the storage's own package alone."""
    auto = AutoModelForSequenceClassification
    if storage == "hqq4":
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        model = auto.from_pretrained(folder, num_labels=2)
        settings = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
        for module in list(model.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, HQQLinear(child, settings, compute_dtype=torch.float32, device="cpu"))
        return model
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kind = Int8WeightOnlyConfig if storage == "int8_weight_only" else Float8WeightOnlyConfig
    packing = TorchAoConfig(kind(set_inductor_config=False), modules_to_not_convert=["score"])
    return auto.from_pretrained(folder, num_labels=2, quantization_config=packing, device_map="cpu")


@storages
def test_a_killed_run_ends_with_the_same_numbers(storage, train, monkeypatch, tmp_path):
    words = [f"peft.quantization={storage}", *STEADY, "trainer.save_steps=1"]
    undisturbed = train(*words, f"output_dir={tmp_path / 'undisturbed'}")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 5)
        train(*words)
    found, expected = (load_file(run.weights / "adapter_model.safetensors") for run in (train(*words), undisturbed))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("storage", EXTRA)
def test_a_missing_package_is_one_sentence_with_what_installs_it(storage, train, monkeypatch):
    find = util.find_spec
    package = Quantization[storage].package
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name == package else find(name))
    sentence = (
        rf"peft.quantization={storage} is in the package {package}, which is not installed: pip install .*\[{package}\]"
    )
    with pytest.raises(UserError, match=sentence):
        train(f"peft.quantization={storage}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["peft.bias=all"], "peft.bias=all trains biases, and HQQ's layers hold theirs as constants"),
        (["trainer.compile=true"], "trainer.compile=true cannot compile HQQ's layers"),
        (["trainer=fsdp"], "peft.quantization=hqq4 packs them"),
        (["peft.init=pissa"], "peft.init=pissa begins with a part of the backbone's weights"),
        (["peft.init=loftq"], "use peft.quantization=nf4 or fp4"),
        (["peft=full"], "peft=full cannot train quantised weights"),
    ],
)
def test_what_does_not_go_with_hqq_is_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config("model=tiny", "peft.quantization=hqq4", *words)


@storages
def test_layers_of_gpt2_are_refused(storage):
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, num_labels=2))
    with pytest.raises(UserError, match=f"peft.quantization={storage} packs linear layers, and those of gpt2"):
        pack(model, Quantization[storage], ["score"], torch.float32, CPU)


@pytest.mark.parametrize("storage", [one for one in STORAGES if "weight_only" in one.id])
def test_torchao_leaves_the_precision_of_torch_as_it_is(storage):
    before = torch.get_float32_matmul_precision()
    packing = quantization_config(from_conf(HeadOnly, quantization=Quantization[storage]), torch.float32, [])
    assert packing.quant_type.set_inductor_config is False
    loaded(storage)
    assert torch.get_float32_matmul_precision() == before


@storages
def test_what_is_packed_does_not_train_beside_the_adapter(storage):
    config = load_config("model=tiny", f"peft.quantization={storage}", "peft.modules_to_save=[layers.0.mlp.up_proj]")
    with pytest.raises(UserError, match="up_proj is quantised and cannot train"):
        attach(loaded(storage), config.peft)
