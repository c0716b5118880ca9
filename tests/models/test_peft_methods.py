"""Methods of PEFT beside LoRA and IA3: presets, and for each method its numbers against those of PEFT itself."""

import dataclasses
import json
import typing
from contextlib import nullcontext
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch
from kills import Killed, killed_at
from methods import LORA, PRESETS, plus
from methods import WORDS as METHODS_OF_PEFT
from peft import AdaLoraModel, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from rounding import drift, rounding
from safetensors.torch import load_file
from storages import STORAGES
from tiers import exhaustive_but
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from sentexp.config import PeftMethod, Quantization, load_config
from sentexp.errors import UserError
from sentexp.inference.scorer import Scorer
from sentexp.models import peft_methods
from sentexp.models.adapters import HARMLESS
from sentexp.models.dequantize import unpack
from sentexp.models.loading import is_reusable
from sentexp.models.merge import merge
from sentexp.models.saved import find_base, read_trained
from sentexp.models.virtual_tokens import has_virtual_tokens
from sentexp.run.build import build_model, outline_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.resolve import resolve_config
from sentexp.run.train import train as train_config
from sentexp.tracking.predictions import file_name, read_predictions
from sentexp.training.adalora import RankAllocation

CLASSES = {kind.value: found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
WORDS = METHODS_OF_PEFT | LORA
ALWAYS = ("adalora", "vera", "eva", "prefix_tuning")
"""Methods that are tried every time: the others are exhaustive tests."""
EPS = 1e-2
STEPS = 5
ONE_BATCH = ["trainer.batch_size=32", f"trainer.max_epochs={STEPS}", "optim.schedule=constant", "optim.warmup_steps=0"]
PLAIN = [*ONE_BATCH, "optim.lr=1e-2", f"optim.eps={EPS}", "trainer.gradient_clip_val=null", "baseline=false"]

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in (*HARMLESS, "Sparse invariant checks")]
methods = pytest.mark.parametrize("name", exhaustive_but([name for name in WORDS if name != "bitfit"], *ALWAYS))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_keys_and_defaults_of_peft(name):
    config = load_config(f"peft={name}").peft
    assert isinstance(config, PeftMethod)
    fields = {item.name: item for item in dataclasses.fields(CLASSES[config.type])}
    hints = typing.get_type_hints(CLASSES[config.type])
    for key, value in config.own_keys().items():
        default = getattr(fields[key].default, "value", fields[key].default)
        kind = {item.name: item.type for item in dataclasses.fields(config)}[key]
        names = [member for member in typing.get_args(hints[key]) if member is not type(None)] or [hints[key]]
        assert kind is Any or names == [kind], f"{key} takes {names}"
        if value == "auto":
            assert peft_methods.LARGEST[config.type] == (key, default)
        elif key != "num_virtual_tokens":  # for which PEFT has no default
            assert value == default, key


def test_there_is_a_preset_or_a_reason_for_every_preset_name():
    assert len(PRESETS) == 22
    assert set(peft_methods.UNSUPPORTED) <= set(CLASSES)
    for kind in Quantization:
        assert set(peft_methods.methods_over(kind)) <= set(CLASSES)
    assert set(peft_methods.NOT_MERGEABLE) <= set(CLASSES)


def built(config, *words):
    """Return the inputs of a run and its model before any step."""
    inputs = prepare_inputs(resolve_inputs(resolve_config(config(*plus(words)))))
    L.seed_everything(inputs.config.seed, verbose=False)
    return inputs, *build_model(inputs)


def padded(inputs, split):
    """Return the rows of a split as plain transformers reads them, and their labels."""
    texts = inputs.examples.split(split)["text"].to_pylist()
    rows = inputs.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return rows, torch.tensor(inputs.examples.targets(split)).long()


@methods
def test_its_losses_are_those_of_a_plain_loop(name, config):
    words = [*WORDS[name], *PLAIN]
    inputs, model, audit = built(config, *words)
    assert audit.trainable_total == model.get_nb_trainable_parameters()[0]
    assert audit.trainable["adapter"] > 0
    rows, labels = padded(inputs, "train")
    optimizer = torch.optim.AdamW(
        [value for value in model.parameters() if value.requires_grad], 1e-2, eps=EPS, weight_decay=0.0
    )
    model.train()
    if hasattr(model.base_model, "update_and_allocate"):
        model.peft_config["default"].total_step = STEPS
    expected = []
    for step in range(STEPS):
        loss = loss_of(model, rows, labels)
        loss.backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        expected.append(loss.item())
    result = train_config(config(*plus(words), "optim.weight_decay=0"))
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["train/loss"] for line in lines if "train/loss" in line]
    assert found == pytest.approx(expected, abs=rounding(max(expected)) + drift(1e-2, STEPS, EPS, gradient=0.3))
    assert abs(expected[0] - expected[-1]) > 10 * rounding(1.0), "nothing was learnt that could differ"


def loss_of(model, rows, labels):
    """Return PEFT's loss, which has the penalty of AdaLoRA in it."""
    if has_virtual_tokens(model):
        return torch.nn.functional.cross_entropy(logits_of(model, rows), labels)
    return model(**rows, labels=labels).loss


def logits_of(model, rows):
    """Return the logits of padded rows; PEFT pools those with virtual tokens at their last column: one at a time."""
    if not has_virtual_tokens(model):
        return model(**rows).logits
    whole = zip(rows["input_ids"], rows["attention_mask"].sum(1), strict=True)
    return torch.cat([model(ids[None, :length], torch.ones(1, int(length))).logits for ids, length in whole])


def probabilities(model, inputs, split="test"):
    rows, _ = padded(inputs, split)
    with torch.no_grad():
        return logits_of(model.eval(), rows).softmax(-1)


def said(result):
    """Return the run's own probabilities of its test rows, shape (rows, classes)."""
    return torch.tensor(read_predictions(result.folder / file_name("test")).probabilities)


@pytest.mark.slow
@methods
def test_a_plan_knows_its_parameters(name, config):
    words = plus(WORDS[name])
    outlined = outline_model(resolve_inputs(resolve_config(config(*words))))[1]
    assert outlined.trainable == built(config, *words)[2].trainable


@methods
def test_plain_peft_reads_what_was_saved(name, config):
    inputs, _, _ = built(config, *WORDS[name], *PLAIN)
    result = train_config(config(*plus([*WORDS[name], *PLAIN])))
    base = AutoModelForSequenceClassification.from_pretrained(inputs.backbone.folder, num_labels=2, pad_token_id=0)
    base.config.pad_token_id = inputs.tokenizer.pad_token_id
    untrained = probabilities(base, inputs)
    model = PeftModel.from_pretrained(base, result.weights)
    torch.testing.assert_close(probabilities(model, inputs), said(result), rtol=0, atol=rounding())
    assert (untrained - said(result)).abs().max() > 10 * rounding()
    if CLASSES and read_type(result) in peft_methods.NOT_MERGEABLE:
        return
    trained = read_trained(result.weights)
    merged = merge(trained, find_base(trained))
    torch.testing.assert_close(probabilities(merged, inputs), said(result), rtol=0, atol=rounding(sums=256))


def read_type(result):
    return json.loads((result.weights / "adapter_config.json").read_text())["peft_type"]


@methods
def test_a_killed_run_ends_with_the_same_numbers(name, config, monkeypatch, tmp_path):
    words = [*plus(WORDS[name]), "trainer.save_steps=1", "baseline=false", "trainer.max_epochs=2", "optim.lr=1e-2"]
    undisturbed = train_config(config(*words, f"output_dir={tmp_path / 'undisturbed'}"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 5)
        train_config(config(*words))
    resumed = train_config(config(*words))
    assert torch.equal(said(resumed), said(undisturbed))
    found, expected = (load_file(run.weights / "adapter_model.safetensors") for run in (resumed, undisturbed))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("storage", ["nf4", *STORAGES])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vera" else [pytest.mark.slow]) for name in [*PRESETS, "ia3"]]
)
def test_packed_weights_give_the_numbers_of_the_weights_they_hold(name, storage, config):
    words = [*WORDS.get(name, [f"peft={name}"]), f"peft.quantization={storage}"]
    method = getattr(config(*plus(words[:-1])).peft, "type", "IA3")
    if method not in peft_methods.methods_over(Quantization[storage]):
        with pytest.raises(UserError, match=f"peft.quantization={storage} does not go with {method}: use another"):
            built(config, *words)
        return
    inputs, model, _ = built(config, *words)
    rows, labels = padded(inputs, "train")
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], 0.5)
    before = probabilities(model, inputs)
    for _ in range(2):
        torch.nn.functional.cross_entropy(logits_of(model.train(), rows), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    packed = probabilities(model, inputs)
    assert (packed - before).abs().max() > 10 * rounding(), "nothing was trained"
    unpack(model.get_base_model())
    torch.testing.assert_close(probabilities(model, inputs), packed, rtol=0, atol=rounding(sums=256))


@pytest.mark.slow
@methods
def test_runs_of_a_sweep_leave_the_backbone_as_it_is(name, config, tmp_path):
    words = [*plus(WORDS[name]), *PLAIN, "trainer.max_epochs=2"]
    alone = train_config(config(*words, f"output_dir={tmp_path / 'alone'}"))
    train_config(config(*words, "sweep.name=many", "seed=7"))
    after = train_config(config(*words, "sweep.name=many"))
    assert torch.equal(said(after), said(alone))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["peft=other", "peft.type=VERRA"], "peft.type=VERRA is not a method of peft .* Did you mean VERA?"),
        (["peft=vera", "trainer=fsdp"], "trainer=fsdp takes LoRA, DoRA, IA3 and whole models, not peft=vera"),
        (
            ["peft.init=eva", "trainer=fsdp"],
            "trainer=fsdp takes neither peft.modules_to_save nor a peft.init that looks",
        ),
        (["peft.modules_to_save=[norm]", "trainer=fsdp"], "trainer=fsdp takes neither peft.modules_to_save nor a"),
        (["peft=other", "peft.type=VERA"], "peft.type=VERA has an option of its own: use peft=vera"),
        (["peft=other", "peft.type=LORA"], "use peft=lora"),
        (["peft=other", "peft.type=POLY"], "peft.type=POLY cannot be used: it needs the number of a task"),
        (
            ["peft=other", "peft.type=PSOFT", "peft.config.rr=8"],
            "peft.config.rr is not a key of PEFT's PsoftConfig",
        ),
        (["peft=other", "peft.type=PSOFT", "peft.config.task_type=x"], "peft.config.task_type is set by sentexp"),
        (
            ["peft=other", "peft.type=PSOFT", "peft.config.psoft_dropout=1"],
            "peft.config.psoft_dropout=1 must be at least 0",
        ),
        (["peft=vera", "peft.vera_dropout=-0.1"], "peft.vera_dropout=-0.1 must be at least 0 and below 1"),
        (["peft=vera", "peft.r=-1"], "peft.type=VERA with these keys does not fit this model: Trying to create tensor"),
        (["peft=vera", "peft.r=0"], "peft.type=VERA with these keys does not fit this model: .*division by zero"),
        (["peft=adalora", "peft.beta1=2"], "peft.type=ADALORA with these keys does not fit this model: AssertionError"),
        (["peft=p_tuning", "peft.encoder_reparameterization_type=GRU"], "PEFT refuses the keys of peft.type=P_TUNING"),
        (["peft=oft", "peft.r=8"], "PEFT refuses the keys of peft.type=OFT: "),
        (["peft=vera", "peft.target_modules=[nothing]"], "peft.target_modules: 'nothing' matches no module"),
        (["peft=bitfit"], "peft=bitfit trains biases, and llama has none"),
        (["peft=adalora", "peft.tfinal=50"], "of this run's 5 steps"),
        (["peft=adalora", "peft.target_r=12"], "peft.target_r=12, which must be less"),
        (
            ["peft=boft", "peft.boft_block_size=7"],
            "peft.type=BOFT with these keys does not fit this model: in_features",
        ),
        (["peft=road", "peft.group_size=48"], "peft.type=ROAD with these keys does not fit this model: "),
        (["peft.init=pizza"], "peft.init=pizza must be one of default, gaussian"),
        (["peft=qlora", "peft.init=pissa"], "peft.init=pissa begins with a part of the backbone's weights"),
        (["peft.init=orthogonal", "peft.r=3"], "peft.init=orthogonal needs even ranks"),
        (
            ["peft=loha", "peft.quantization=int8"],
            r"peft.quantization=int8 does not go with LOHA: use another peft.quantization \(none, int8_weight_only, "
            r"float8_weight_only\); over int8 train IA3, LORA",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(overrides, sentence, config):
    with pytest.raises(UserError, match=sentence) as refused:
        train_config(config(*plus(overrides), *PLAIN))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_the_encoder_of_p_tuning_may_have_other_layers(kind, config):
    words = [*WORDS["p_tuning"], f"peft.encoder_reparameterization_type={kind}", "peft.encoder_num_layers=1"]
    ignored = pytest.warns(UserWarning, match="`encoder_num_layers` is ignored") if kind == "MLP" else nullcontext()
    with ignored:
        assert built(config, *words)[2].trainable["adapter"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pissa", "olora", "corda", "lora_ga"])
@pytest.mark.parametrize("rslora", ["false", "true"])
def test_what_begins_with_a_part_of_the_weights_is_saved_as_lora_over_all_of_them(start, rslora, config):
    inputs, _, _ = built(config, f"peft.init={start}", "peft.r=4", *PLAIN)
    patterns = ["peft.rank_pattern={v_proj:2}", "peft.alpha_pattern={v_proj:16,up_proj:4}"]
    result = train_config(config(f"peft.init={start}", "peft.r=4", *patterns, f"peft.use_rslora={rslora}", *PLAIN))
    base = AutoModelForSequenceClassification.from_pretrained(
        inputs.backbone.folder, num_labels=2, pad_token_id=inputs.tokenizer.pad_token_id
    )
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = PeftModel.from_pretrained(base, result.weights)
    assert model.peft_config["default"].r == 8
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items() if name in before)
    torch.testing.assert_close(probabilities(model, inputs), said(result), rtol=0, atol=rounding(sums=256))


def test_a_step_has_the_penalty_of_adalora_once_however_it_is_cut(config, tmp_path):
    def losses(name, *words):
        result = train_config(config("peft=adalora", *PLAIN, *words, f"output_dir={tmp_path / name}"))
        lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        return [line["train/loss"] for line in lines if "train/loss" in line]

    whole = losses("whole")
    cut = losses("cut", "trainer.batch_size=5", "trainer.accumulate_grad_batches=7")
    assert cut == pytest.approx(whole, abs=rounding(max(whole)) + drift(1e-2, STEPS, EPS, gradient=0.3))


@pytest.mark.parametrize("norm", ["input_layernorm", "norm"])
def test_some_norms_can_be_tuned(norm, config):
    result = train_config(config("peft=ln_tuning", f"peft.target_modules=[{norm}]", *PLAIN))
    assert all(target.endswith(norm) for target in result.parameters.targets)
    texts = built(config)[0].examples.test["text"].to_pylist()
    torch.testing.assert_close(read_again(result, texts), said(result), rtol=0, atol=rounding())


@pytest.mark.parametrize("method", ["lora", "boft"])
def test_runs_that_train_biases_load_weights_of_their_own(method, config):
    assert not is_reusable(config(f"peft={method}", "peft.bias=all").peft)
    assert is_reusable(config(f"peft={method}").peft)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_cannot_be_merged(method, config):
    trained = read_trained(train_config(config(f"peft={method}", *PLAIN)).weights)
    with pytest.raises(
        UserError, match=f"{method.upper()} puts virtual tokens before each text, and no merged model has"
    ):
        merge(trained, find_base(trained))


def test_what_cannot_be_merged_is_one_sentence(config):
    trained = read_trained(train_config(config("peft=other", "peft.type=BEFT", *PLAIN)).weights)
    with pytest.raises(UserError, match=r"PEFT cannot merge BEFT into this model .*: use format=peft."):
        merge(trained, find_base(trained))


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj,o_proj]", "null"])
def test_a_size_that_fits_is_found(targets, config):
    _, model, _ = built(config, "peft=c3a", f"peft.target_modules={targets}")
    assert model.peft_config["default"].block_size == (64 if targets == "[q_proj,o_proj]" else 32)


def test_ranks_are_shared_out_after_every_step(config, monkeypatch):
    """How many ranks are left is a matter of arithmetic; which ones, rounding could change."""
    steps = []
    original = AdaLoraModel.update_and_allocate

    def allocate(self, global_step):
        original(self, global_step)
        kept = sum(int(value.count_nonzero()) for name, value in self.named_parameters() if "lora_E" in name)
        steps.append((global_step, kept, self.rankallocator.budget_schedule(global_step)))

    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", allocate)
    train_config(config("peft=adalora", *PLAIN))
    assert [number for number, _, _ in steps] == list(range(STEPS))
    assert [is_masked for _, _, (_, is_masked) in steps] == [False, True, True, True, True]
    assert all(kept == budget for _, kept, (budget, is_masked) in steps if is_masked)
    first, last = (steps[index][2][0] for index in (0, -1))
    assert last < first


def test_a_resumed_run_knows_the_importance_of_every_rank(config):
    _, model, _ = built(config, "peft=adalora", *PLAIN)
    allocation = RankAllocation(model)
    allocator = model.base_model.rankallocator
    for name, value in model.named_parameters():
        value.grad = torch.ones_like(value) if value.requires_grad else None
        if "lora_" in name:
            value.data.fill_(0.5)
    allocator.update_ipt(model.base_model.model)
    allocation.config.rank_pattern = {"a": [True]}
    state = allocation.state_dict()
    _, other, _ = built(config, "peft=adalora", *PLAIN)
    resumed = RankAllocation(other)
    resumed.load_state_dict(state)
    assert resumed.config.rank_pattern == {"a": [True]}
    for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        known = getattr(other.base_model.rankallocator, name)
        assert known.keys() == getattr(allocator, name).keys()
        assert all(torch.equal(known[key], value) for key, value in getattr(allocator, name).items())
    assert known


@pytest.fixture
def gpt2(tmp_path, vocabulary):
    """Return the folder of a small GPT-2, whose layers are Conv1D."""
    tokenizer = vocabulary("gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def read_again(result, texts):
    return torch.tensor(Scorer(read_trained(result.weights)).probabilities(texts))


@pytest.mark.slow
@methods
@pytest.mark.parametrize("setting", ["trainer.precision=bf16", "task=causal_lm"])
def test_a_run_says_the_same_when_it_is_read_again(name, setting, config):
    template = ["task.template=completion"] if "causal" in setting else []
    result = train_config(config(*plus(WORDS[name]), setting, *template, *PLAIN))
    texts = built(config)[0].examples.test["text"].to_pylist()
    # In bfloat16 the logits, of about 1, are rounded, and a probability changes by a quarter of what a logit does.
    in_bf16 = rounding(0.25, torch.bfloat16, terms=1, sums=4)
    tolerance = in_bf16 if "bf16" in setting else rounding()
    torch.testing.assert_close(read_again(result, texts), said(result), rtol=0, atol=tolerance)


LLAMAS = ("patterns", "beside")  # by the names of its layers
NOT_OVER_CONV1D = (
    "boft", "c3a", "delora", "hra", "loha", "lokr", "miss", "oft", "road", "shira", "beft", "psoft", "lily", "olora"
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", exhaustive_but(sorted({*WORDS} - {*NOT_OVER_CONV1D, *LLAMAS}), *ALWAYS))
def test_gpt2_trains(name, gpt2, config):
    result = train_config(config(*plus(WORDS[name]), f"model.path={gpt2}", *PLAIN))
    texts = built(config)[0].examples.test["text"].to_pylist()
    torch.testing.assert_close(read_again(result, texts), said(result), rtol=0, atol=rounding())


@pytest.mark.parametrize("name", NOT_OVER_CONV1D)
def test_what_cannot_adapt_gpt2_is_one_sentence(name, gpt2, config):
    with pytest.raises(UserError, match="does not fit"):
        built(config, *WORDS[name], f"model.path={gpt2}")
