"""LoRA that begins by training rows or packed weights: as PEFT does it, and as well as a rank can."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import initialize_lora_eva_weights
from peft.tuners.lora.config import EvaConfig
from peft.utils.loftq_utils import _low_rank_decomposition
from rounding import rounding
from transformers import AutoModelForSequenceClassification

from sentexp.errors import UserError
from sentexp.inference.scorer import Scorer
from sentexp.models.adapters import HARMLESS, trainable_state
from sentexp.models.dequantize import unpack
from sentexp.models.saved import read_trained
from sentexp.models.structure import base_of
from sentexp.run.build import build_model, outline_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.train import train
from sentexp.tracking.predictions import file_name, read_predictions

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in HARMLESS]


@pytest.fixture
def begun(config):
    """Return a function from overrides to the inputs of a run and its model before any step."""

    def begin(*words):
        torch.manual_seed(0)
        inputs = prepare_inputs(resolve_inputs(config(*words)))
        return inputs, build_model(inputs)[0]

    return begin


def plain(inputs):
    return AutoModelForSequenceClassification.from_pretrained(inputs.backbone.folder, num_labels=2, pad_token_id=0)


def matrices(model):
    """Return A and B of each layer, by its path in transformers' model."""
    layers = {path: module for path, module in base_of(model).named_modules() if hasattr(module, "lora_A")}
    assert len(layers) == 14
    return {path: (one.lora_A["default"].weight, one.lora_B["default"].weight) for path, one in layers.items()}


def test_eva_begins_at_the_components_that_peft_finds(begun):
    """All tokens are one batch of PEFT's; its singular vectors are those of a random projection."""
    inputs, model = begun("peft.init=eva", "peft.r=3")
    texts = inputs.tokenizer(inputs.examples.train["text"].to_pylist(), padding=True, return_tensors="pt")
    eva = EvaConfig(rho=1.0, tau=0.9)
    settings = LoraConfig(
        r=24, target_modules="all-linear", init_lora_weights="eva", eva_config=eva, task_type="SEQ_CLS"
    )
    other = get_peft_model(plain(inputs), settings, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(other, [dict(texts)], show_progress_bar=False)
    expected = matrices(other)
    for path, (a, b) in matrices(model).items():
        assert not b.any()
        cosines = (a * expected[path][0][:3]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(3), rtol=0, atol=1e-2)


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_the_seed_chooses_the_rows(init, begun):
    words = [f"peft.init={init}", "peft.r=4", "peft.init_rows=6"]
    first, again, other = (begun(*words, f"seed={seed}")[1] for seed in (1, 1, 2))
    for path, (a, b) in matrices(first).items():
        assert torch.equal(a, matrices(again)[path][0])
        assert torch.equal(b, matrices(again)[path][1])
        assert not torch.allclose(a, matrices(other)[path][0], rtol=1e-2, atol=0)


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
@pytest.mark.parametrize("task", ["task=seq_cls", "task=causal_lm"])
def test_what_an_adapter_begins_with_is_taken_out_of_the_weights(init, task, begun):
    inputs, model = begun(f"peft.init={init}", "peft.r=4", task)
    whole = plain(inputs)
    for path, (a, b) in matrices(model).items():
        module = base_of(model).get_submodule(path)
        taken = module.scaling["default"] * b @ a
        weight = whole.get_submodule(path).weight
        assert taken.norm() > 1e-3 * weight.norm()
        torch.testing.assert_close(module.get_base_layer().weight + taken, weight, rtol=0, atol=rounding())


def test_lora_ga_begins_with_the_directions_of_the_gradient(begun):
    """The rows of A are the first r right singular vectors, the columns of B the next r left ones (the paper's 3.2)."""
    inputs, model = begun("peft.init=lora_ga", "peft.r=4")
    whole = begun("peft=full")[1]
    base_of(whole).score.load_state_dict(base_of(model).score.modules_to_save["default"].state_dict())
    train = inputs.tokens["train"]
    for number in range(len(train)):
        ids = torch.tensor(train.ids([number]))
        (whole(ids, labels=torch.tensor(train.labels[[number]]).long()).loss / len(train)).backward()
    for path, (a, b) in matrices(model).items():
        left, _, right = torch.linalg.svd(whole.get_submodule(path).weight.grad, full_matrices=False)
        cosines = torch.cat([(a * right[:4]).sum(1), (b / b.norm(dim=0) * left[:, 4:8]).sum(0)]).abs()
        torch.testing.assert_close(cosines, torch.ones(8), rtol=0, atol=1e-2)


@pytest.mark.parametrize("alpha", [4, 16])
@pytest.mark.parametrize("kept", ["false", "true"])
def test_loftq_is_the_best_that_a_rank_can_make_up_for_packing(alpha, kept, begun):
    words = ["peft=qlora", "peft.init=loftq", "peft.r=4", f"peft.alpha={alpha}", f"model.keep_dequantized={kept}"]
    inputs, model = begun(*words)
    whole = plain(inputs)
    pairs = matrices(model)
    scale = next(m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A"))
    unpack(base_of(model))
    for path, (a, b) in pairs.items():
        lost = whole.get_submodule(path).weight - base_of(model).get_submodule(path).base_layer.weight
        rest = torch.linalg.svdvals(lost)[4:].norm()
        torch.testing.assert_close((lost - scale * b @ a).norm(), rest, rtol=1e-4, atol=0)
        parts = _low_rank_decomposition(lost, 4)  # what PEFT's replace_lora_weights_loftq writes, which needs a GPU
        torch.testing.assert_close(scale * b @ a, parts["L"] @ parts["R"], rtol=0, atol=rounding())


def test_what_begins_by_loftq_is_read_again_over_the_same_packed_weights(config):
    result = train(config("peft=qlora", "peft.init=loftq", "peft.r=4", "optim.lr=1e-2", "baseline=false"))
    assert result.parameters.frozen["adapter"] == 0 < result.parameters.frozen["linear layers"]
    trained = read_trained(result.weights)
    texts = prepare_inputs(resolve_inputs(config())).examples.test["text"].to_pylist()
    said = torch.tensor(read_predictions(result.folder / file_name("test")).probabilities)
    torch.testing.assert_close(torch.tensor(Scorer(trained).probabilities(texts)), said, rtol=0, atol=rounding())
    saved = json.loads((result.weights / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True
    assert not saved["loftq_config"]


def test_looking_leaves_what_is_drawn_later_and_the_head(begun):
    start = trainable_state(begun("peft.init=default", "peft.r=4")[1])
    drawn = torch.rand(1)
    found = trainable_state(begun("peft.init=eva", "peft.r=4")[1])
    assert torch.equal(torch.rand(1), drawn)
    head = next(key for key in start if "score" in key)
    assert torch.equal(found[head], start[head])


def test_a_plan_looks_at_no_rows(config):
    for init in ("eva", "corda", "lora_ga"):
        audit = outline_model(resolve_inputs(config(f"peft.init={init}", "peft.r=4")))[1]
        assert audit.trainable == outline_model(resolve_inputs(config("peft.r=4")))[1].trainable


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["peft.init=lora_ga", "peft.r=17"], "lora_ga can give model.layers.0.self_attn.k_proj a rank of at most 16"),
        (["peft.init=eva", "peft.r=65"], "peft.init=eva can give model.layers.0.self_attn.q_proj a rank of at most 64"),
        (["peft.init=corda", "peft.quantization=nf4"], "peft.init=corda begins with a part of the backbone's weights"),
        (["peft.init=loftq"], "peft.init=loftq makes up for what 4 bits lose: use peft.quantization=nf4"),
        (["peft.init=loftq", "peft=qlora", "peft.use_dora=true"], "peft.use_dora=false with it"),
        (["peft.init=eva", "peft.init_rows=0"], "peft.init_rows=0 must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_begin_so_is_one_sentence(overrides, sentence, begun):
    with pytest.raises(UserError, match=sentence) as refused:
        begun(*overrides)
    assert "\n" not in str(refused.value)
