"""Adapters: what trains is what was asked for, and the base stays as it was (law 6)."""

import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from sentexp.config import Attention, Precision, load_config
from sentexp.data.batch import pad
from sentexp.data.packing import Packer
from sentexp.errors import UserError
from sentexp.models import adapters
from sentexp.models.adapters import attach, load_trainable_state, trainable_state
from sentexp.models.loading import Loading, load_classifier, load_tokenizer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.sequence_classifier import SequenceClassifier

# Llama layers of the tiny model: q and o 64x64, k and v 64x32, gate and up 64x128, down 128x64; 2 layers; head 2x64.
LINEAR = 2 * (64 + 64 + 64 + 64 + 2 * (64 + 32) + 3 * (64 + 128))
OUTPUTS = 2 * (64 + 64 + 32 + 32 + 128 + 128 + 64)
HEAD = 128


def tiny(*overrides):
    config = load_config("model=tiny", *overrides)
    backbone = locate_backbone(config.model)
    load = Loading(
        storage=config.peft,
        attention=Attention.auto,
        precision=Precision.fp32,
        device=torch.device("cpu"),
        trains_backbone=config.peft.__class__.__name__ == "FullFineTuning",
    )
    return config, load_classifier(backbone, load_tokenizer(backbone), ["negative", "positive"], load)


def gpt2():
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=2, pad_token_id=0)
    return GPT2ForSequenceClassification(shape)


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        (["peft=none"], 0),
        (["peft=head"], HEAD),
        (["peft=lora", "peft.r=3"], 3 * LINEAR + HEAD),
        (["peft=lora", "peft.r=3", "peft.use_rslora=true"], 3 * LINEAR + HEAD),
        (["peft=dora", "peft.r=3"], 3 * LINEAR + OUTPUTS + HEAD),
        (["peft=lora", "peft.r=4", "peft.target_modules=[q_proj,v_proj]"], 4 * 2 * (128 + 96) + HEAD),
        (["peft=lora", "peft.r=4", "peft.target_modules=q_proj"], 4 * 2 * 128 + HEAD),
        (["peft=lora", "peft.r=4", "peft.target_modules='.*layers.1.*q_proj'"], 4 * 128 + HEAD),
        (["peft=lora", "peft.r=2", "peft.layers_to_transform=[1]"], LINEAR + HEAD),
        (["peft.r=3", "peft.rank_pattern={layers.1.mlp.up_proj:7,v_proj:1}"], 3 * LINEAR - 4 * 96 + 4 * 192 + HEAD),
        (["peft.r=4", "peft.target_modules=[q_proj,v_proj]", "peft.exclude_modules=v_proj"], 4 * 2 * 128 + HEAD),
        (["peft.r=4", "peft.target_modules=[q_proj]", "peft.exclude_modules='.*layers.1.*'"], 4 * 128 + HEAD),
        (
            ["peft.r=3", "peft.modules_to_save=[model.norm,layers.0.mlp.up_proj]"],
            3 * LINEAR - 3 * 192 + 64 + 64 * 128 + HEAD,
        ),
        (["peft=qlora", "peft.r=3"], 3 * LINEAR + HEAD),
        (["peft=lora", "peft.r=3", "peft.quantization=int8"], 3 * LINEAR + HEAD),
        (["peft=ia3"], 2 * (32 + 32 + 128) + HEAD),
        (["peft=ia3", "peft.target_modules=[q_proj,up_proj]", "peft.feedforward_modules=[]"], 2 * 192 + HEAD),
        (["peft=ia3", "peft.target_modules=[q_proj,up_proj]", "peft.feedforward_modules=[up_proj]"], 2 * 128 + HEAD),
    ],
)
def test_the_trained_parameters_are_those_that_the_shapes_imply(overrides, trained):
    config, model = tiny(*overrides)
    _, audit = attach(model, config.peft)
    assert audit.trainable_total == trained
    adapter = audit.trainable["adapter"]
    assert audit.total - adapter == 257 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 5 * 64 + HEAD


def test_full_fine_tuning_trains_everything():
    config, model = tiny("peft=full")
    _, audit = attach(model, config.peft)
    assert audit.trainable_total == audit.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("bias", "biases"), [("none", 0), ("all", 2 * (48 + 16 + 64 + 16 + 2 * 16) + 16), ("lora_only", 2 * 48)]
)
def test_biases_train_as_asked_on_gpt2(bias, biases):
    config = load_config("peft=lora", "peft.r=2", f"peft.bias={bias}", "peft.target_modules=[c_attn]")
    _, audit = attach(gpt2(), config.peft)
    assert audit.trainable_total == 2 * 2 * (16 + 48) + biases + 32


@pytest.mark.parametrize("texts", [pad([[5, 6, 7]], 0, "right"), Packer().score([[5, 6, 7]], 0)])
def test_the_base_is_bit_identical_after_a_step_and_the_adapter_is_not(texts):
    config, model = tiny("peft=lora")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    wrapped, _ = attach(model, config.peft)
    start = trainable_state(wrapped)
    start = {name: value.clone() for name, value in start.items()}
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    SequenceClassifier(wrapped)(texts).logits.sum().backward()
    optimizer.step()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in wrapped.named_parameters()
    }
    frozen = [name for name in before if not name.startswith("score")]
    assert len(frozen) > 10
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = trainable_state(wrapped)
    assert all(not torch.equal(start[name], moved[name]) for name in start if "lora_B" in name or "score" in name)


def test_a_regular_expression_adapts_linear_layers_of_the_backbone_only():
    config, model = tiny("peft.target_modules='.*(q_proj|embed_tokens|score)'")
    _, audit = attach(model, config.peft)
    assert {path.split(".")[-1] for path in audit.targets} == {"q_proj"}


@pytest.mark.parametrize("target", ["[q_proj,quary]", "'.*nothing.*'", "quary"])
def test_targets_that_match_nothing_are_refused(target):
    config, model = tiny(f"peft.target_modules={target}")
    with pytest.raises(
        UserError, match=r"peft.target_modules.*matches no module: the linear layers .* down_proj, gate_proj"
    ):
        attach(model, config.peft)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["peft.rank_pattern={quary:4}"], "peft.rank_pattern: 'quary' matches no target module"),
        (["peft.alpha_pattern={v_proj:4}", "peft.target_modules=[q_proj]"], "peft.alpha_pattern: 'v_proj' matches no"),
        (["peft.exclude_modules=[score]"], "peft.exclude_modules: 'score' matches no target module"),
        (["peft.exclude_modules='.*score'"], r"peft.exclude_modules=\.\*score matches no target module"),
        (["peft.exclude_modules=[mlp,q_proj]"], "peft.exclude_modules: 'mlp' matches no target module"),
        (["peft.exclude_modules=q_proj", "peft.target_modules=q_proj"], "leaves no target module"),
        (["peft.modules_to_save=[score]"], "peft.modules_to_save: 'score' matches no module outside the head"),
        (["peft.modules_to_save=[mlp]", "peft=qlora"], "layers.0.mlp is quantised and cannot train"),
    ],
)
def test_names_that_match_nothing_are_refused(keys, sentence):
    config, model = tiny(*keys)
    with pytest.raises(UserError, match=sentence):
        attach(model, config.peft)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("peft.rank_pattern={v_proj:0}", "peft.rank_pattern={'v_proj': 0} must give layers ranks above 0 by name"),
        ("peft.rank_pattern={v_proj:1.5}", "ranks above 0"),
        ("peft.alpha_pattern=[1]", "alphas above 0"),
        ("peft.rank_pattern={v_proj:3}", "peft.init=orthogonal needs even ranks"),
    ],
)
def test_patterns_of_other_kinds_are_refused(key, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config("peft.init=orthogonal", key)


def test_what_trains_beside_is_of_its_own_kind_and_in_float32():
    config, model = tiny("peft.modules_to_save=[embed_tokens]")
    model.model.bfloat16()
    wrapped, audit = attach(model, config.peft)
    assert audit.trainable["embeddings"] == 257 * 64
    assert {value.dtype for value in wrapped.parameters() if value.requires_grad} == {torch.float32}


def test_a_layer_that_does_not_exist_is_refused():
    config, model = tiny("peft.layers_to_transform=[1,5]")
    with pytest.raises(UserError, match=r"holds 5, but the layers are numbered 0 to 1"):
        attach(model, config.peft)


def test_a_wrong_count_is_an_error(monkeypatch):
    # The published report that trained 12,288 parameters for rank 16 on Llama-2-7B would have ended here.
    monkeypatch.setattr(
        adapters, "_wrap", lambda model, config: (model.requires_grad_(False), ["model.layers.0.mlp.up_proj"])
    )
    config, model = tiny("peft=lora")
    with pytest.raises(
        RuntimeError, match="0 parameters would be trained, but the shapes of the 1 target modules imply"
    ):
        attach(model, config.peft)


def test_quantised_layers_are_four_bit_and_the_head_is_not():
    import bitsandbytes as bnb

    config, model = tiny("peft=qlora")
    wrapped, audit = attach(model, config.peft)
    four_bit = [module for module in wrapped.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(four_bit) >= 14
    assert audit.frozen["linear layers"] == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert type(adapters.head_of(wrapped)) is torch.nn.Linear
    assert adapters.head_of(wrapped).weight.dtype == torch.float32


def test_bitsandbytes_is_imported_for_quantised_layers_alone(command_environment):
    """In a process of its own, as the libraries are imported once."""
    code = """
import sys, torch
from sentexp.config import Attention, Precision, load_config
from sentexp.models.adapters import attach
from sentexp.models.loading import Loading, load_classifier, load_tokenizer
from sentexp.models.pretrained import locate_backbone
for peft in ("lora", "qlora"):
    config = load_config("model=tiny", f"peft={peft}")
    backbone = locate_backbone(config.model)
    load = Loading(
        storage=config.peft, attention=Attention.auto, precision=Precision.fp32, device=torch.device("cpu")
    )
    model, _ = attach(load_classifier(backbone, load_tokenizer(backbone), ["a", "b"], load), config.peft)
    print("bitsandbytes" in sys.modules, {type(module).__module__ for module in model.modules()} & {
        "peft.tuners.lora.layer", "peft.tuners.lora.bnb"})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["False {'peft.tuners.lora.layer'}", "True {'peft.tuners.lora.bnb'}"], (
        done.stderr
    )


def test_a_trainable_state_goes_back_only_where_it_came_from():
    config, model = tiny("peft=lora")
    wrapped, _ = attach(model, config.peft)
    state = {name: value + 1 for name, value in trainable_state(wrapped).items()}
    load_trainable_state(wrapped, state)
    assert all(torch.equal(value, state[name]) for name, value in trainable_state(wrapped).items())
    state.popitem()
    with pytest.raises(RuntimeError, match="trains other parameters"):
        load_trainable_state(wrapped, state)
