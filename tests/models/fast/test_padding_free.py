"""Without padding: losses, gradients and predictions are those of padded rows, whatever the model, task and adapter."""

import functools
import random

import pytest
import torch
from rounding import agree, drift, rounding
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from sentexp.config import Attention, Precision, load_config
from sentexp.data.batch import pad
from sentexp.data.packing import Packer
from sentexp.models.adapters import attach
from sentexp.models.fast import llama
from sentexp.models.fast.padding_free import PADDING_FREE_ARCHITECTURES
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.fast.support import ARCHITECTURES
from sentexp.models.label_scorer import LabelScorer
from sentexp.models.loading import Loading, clone_sharing_weights, load_classifier, load_language_model, load_tokenizer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.models.structure import base_of

MOST = 48
LORA = ("peft=lora", "peft.r=3", "peft.alpha=6")
ONE, SEVERAL = [[10], [11], [12]], [[10], [11, 12], [13, 14, 15]]
END = [7]
TASKS = [
    ("seq_cls", []),
    ("answer", ONE),
    ("answer", SEVERAL),
    ("label_words", ONE),
    ("label_words", SEVERAL),
    ("full", ONE),
    ("full", SEVERAL),
]
NAMES = ["head", "answer", "answers", "label", "labels", "full", "fulls"]
BOTH = [TASKS[0], TASKS[4]]
BEGIN = [5, 6, 9]
"""What the rows of most tests begin with."""


@functools.cache
def settings(*words):
    return load_config(*words)


def shape(kind, **changes):
    """Return a tiny configuration without dropout."""
    common = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MOST,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    usual = AutoConfig.for_model(kind)
    dropouts = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")
    common |= {name: 0.0 for name in dropouts if hasattr(usual, name)}
    if hasattr(usual, "num_key_value_heads"):
        common["num_key_value_heads"] = 2
    if kind in ("gemma3_text", "qwen3"):
        common["head_dim"] = 8
    if kind == "smollm3":
        common["no_rope_layers"] = [1, 0]
    return AutoConfig.for_model(kind, **common | changes)


def spread(model):
    """Draw all weights that train anew, so large that every part of a model shows in what it says."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scales = parameter.ndim == 1 and not name.endswith("bias")
            parameter.data.normal_(mean=float(scales), std=0.2)


def build(kind, task=TASKS[0], peft=LORA, dtype=torch.float32, checkpointing=False, **changes):
    """Return a classifier over a random model with an adapter that changes what it says, and its packer."""
    loss = task[0]
    auto = AutoModelForSequenceClassification if loss == "seq_cls" else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(shape(kind, **changes))
    spread(model)
    model.to(dtype)
    if loss == "seq_cls":
        model.score.float()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return classify(model, task, peft)


def classify(model, task, peft, seed=1):
    """Return the same over a model."""
    loss, answers = task
    trained, _ = attach(model, settings(*peft).peft)
    torch.manual_seed(seed)
    spread(trained)
    if loss == "seq_cls":
        return SequenceClassifier(trained).eval(), Packer()
    config = settings("task=causal_lm", "task.template=completion", f"task.loss={loss}").task
    return LabelScorer(trained, answers, END, config, 0, 6).eval(), Packer(answers=answers, end=END, loss=config.loss)


def rows_of(*lengths, begin=(), seed=0):
    """Return random rows with so many tokens behind what they begin with."""
    draw = random.Random(seed)
    return [[*begin, *(draw.randrange(16, 60) for _ in range(length))] for length in lengths]


def some_rows(seed=0, count=5, most=14):
    """Return rows of random lengths that begin alike."""
    draw = random.Random(seed + 100)
    return rows_of(*(draw.randrange(1, most) for _ in range(count)), begin=BEGIN, seed=seed)


def labels_of(rows):
    return [number % 3 for number in range(len(rows))]


def learned(classifier, texts, rows):
    """Return the losses of rows, and the gradients of a sum that weighs each of them, by name."""
    classifier.train().zero_grad()
    losses = classifier.losses(texts, torch.tensor(labels_of(rows)))
    (losses * torch.linspace(0.5, 2, len(rows))).sum().backward()
    trained = {name: part for name, part in classifier.named_parameters() if part.requires_grad}
    classifier.eval()
    return {"loss": losses.detach()} | {name: part.grad for name, part in trained.items()}


def said(classifier, texts, cache=None):
    """Return what a classifier says of rows, by name."""
    with torch.no_grad():
        return {name: part for name, part in classifier(texts, cache)._asdict().items() if part is not None}


def near(found, expected):
    """Compare tensors, each up to the rounding of its largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(float(expected.abs().max())))


def compare(classifier, packer, rows, prefixes=(0, 3), silent=False):
    """Compare all that is computed of rows, once padded and then packed."""
    padded = pad(rows, 0, "right")
    scores, steps = said(classifier, padded), learned(classifier, padded, rows)
    for prefix in prefixes:
        agree(said(classifier, packer.score(rows, prefix)), scores)
        agree(learned(classifier, packer.train(rows, labels_of(rows), prefix), rows), steps, silent=silent)
    return scores, steps


@pytest.fixture
def fast_calls(monkeypatch):
    """Return a list that grows with each call of a fast layer."""
    calls, original = [], llama.decoder_layer

    def counted(*given):
        calls.append(torch.is_grad_enabled())
        return original(*given)

    monkeypatch.setattr(llama, "decoder_layer", counted)
    return calls


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
@pytest.mark.parametrize("kind", PADDING_FREE_ARCHITECTURES)
def test_nothing_changes_without_padding(kind, task, fast_calls):
    classifier, packer = build(kind, task)
    compare(classifier, packer, some_rows(seed=PADDING_FREE_ARCHITECTURES.index(kind)))
    assert bool(fast_calls) == (kind in ARCHITECTURES)


@pytest.mark.parametrize(
    ("keys", "is_fast"),
    [
        (["peft.rank_pattern={v_proj:5}", "peft.alpha_pattern={down_proj:9,v_proj:2}"], True),
        (["peft.exclude_modules=[layers.0.self_attn.k_proj,up_proj]"], True),
        (["peft.modules_to_save=[norm]"], False),
        (["peft.modules_to_save=[embed_tokens,layers.1.mlp.down_proj]"], False),
    ],
)
def test_layers_may_differ_and_others_may_train_beside(keys, is_fast, fast_calls):
    compare(*build("llama", peft=(*LORA, *keys)), some_rows())
    assert bool(fast_calls) is is_fast


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("lengths", "prefixes"),
    [
        ((6,), (0, 3)),
        ((1,), (0,)),
        ((4, 4, 4, 4), (0, 3)),
        ((1, 11, 1, 2), (0,)),
        ((MOST - 3 - 3, 2, 9), (0, 3)),  # with the prefix and the longest branches as many as there are positions
        ((1, 1, 1), (0, 3)),
    ],
    ids=["one row", "one token", "equal", "uneven", "longest", "least"],
)
def test_rows_of_any_shape(kind, task, lengths, prefixes):
    begin = BEGIN if max(prefixes) else ()
    # A single token attends to nothing but itself, so that its query and key train nothing.
    compare(*build(kind, task), rows_of(*lengths, begin=begin), prefixes, silent=lengths == (1,))


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_random_lengths(seed):
    compare(*build("llama", BOTH[seed % 2], num_hidden_layers=3), some_rows(seed, count=9, most=30))


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_equal_rows_are_told_the_same(kind, task):
    classifier, packer = build(kind, task)
    rows = rows_of(7, begin=BEGIN) * 3
    for prefix in (0, 3, len(rows[0]) - 1):
        logits = said(classifier, packer.score(rows, prefix))["logits"]
        near(logits, logits[:1].expand_as(logits))
    compare(classifier, packer, rows, (0, 3, len(rows[0]) - 1))


SHORT = {"dtype": torch.bfloat16, "terms": 1, "sums": 32}
"""Of bfloat16: in each of two layers seven products and a norm are rounded, and once more on the way back."""


def assert_rounded_alike(found, other, truth):
    """Compare what rows say and teach with float32: off by its rounding, and by little more than the other."""
    assert {name: part.dtype for name, part in found.items()} == {name: part.dtype for name, part in other.items()}
    truth = {name: part for name, part in truth.items() if part.is_floating_point()}
    agree({name: found[name].float() for name in truth}, truth, silent=True, **SHORT)
    errors = [
        sum(float((part[name].float() - value).norm() / value.norm()) for name, value in truth.items()) / len(truth)
        for part in (found, other)
    ]
    assert errors[1] > torch.finfo(torch.bfloat16).eps / 32
    assert errors[0] < 2 * errors[1]  # a mean over tens of tensors, of which each errs by chance


@pytest.mark.parametrize("task", [TASKS[0], TASKS[1], TASKS[4]], ids=["head", "answer", "labels"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2"])
def test_bfloat16_is_rounded_as_without_packing(kind, task):
    """Both are as far from float32: the arithmetic is no coarser where rows are packed."""
    rows = some_rows(count=6)
    padded = pad(rows, 0, "right")
    classifier, packer = build(kind, task, dtype=torch.bfloat16)
    exact, _ = build(kind, task, dtype=torch.bfloat16)
    exact.float()
    truth = said(exact, padded) | learned(exact, padded, rows)
    with torch.autocast("cpu", torch.bfloat16):
        apart = said(classifier, padded) | learned(classifier, padded, rows)
        for prefix in (0, 3):
            packed = packer.train(rows, labels_of(rows), prefix)
            found = said(classifier, packer.score(rows, prefix)) | learned(classifier, packed, rows)
            assert_rounded_alike(found, apart, truth)


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "smollm3", "gemma3_text"])
def test_a_prefix_that_is_known_is_not_computed_again(kind, task, fast_calls):
    classifier, packer = build(kind, task)
    batches = [some_rows(seed) for seed in range(3)]
    cache, seen = PrefixCache(), []
    base_of(classifier.model).get_input_embeddings().register_forward_hook(lambda *given: seen.append(given[2].shape))
    for number, rows in enumerate(batches):
        packed = packer.score(rows, 3)
        seen.clear()
        found = said(classifier, packed, cache)
        assert [part[-2] for part in seen] == [len(packed.ids) - (3 if number else 0)]
        agree(found, said(classifier, packed))
        agree(found, said(classifier, pad(rows, 0, "right")))
    assert len(cache.layers) == 2
    assert all(key.shape[0] == value.shape[0] == 3 for key, value in cache.layers.values())
    assert bool(fast_calls) == (kind in ARCHITECTURES)


def test_rows_that_share_nothing_leave_no_trace_in_the_cache():
    classifier, packer = build("llama")
    cache = PrefixCache()
    for seed in range(2):
        rows = some_rows(seed)
        agree(said(classifier, packer.score(rows, 0), cache), said(classifier, pad(rows, 0, "right")))
    assert cache.layers == {}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("answers", [ONE, SEVERAL])
def test_the_same_answers_are_written(kind, answers):
    classifier, packer = build(kind, ("answer", answers))
    rows = rows_of(MOST - 3 - 6, 4, 9, begin=BEGIN)  # the first leaves room for the answer only
    expected = classifier.generate(pad(rows, 0, "right"))
    assert len(set(map(tuple, expected.tolist()))) > 1
    for prefix in (0, 3):
        packed = packer.score(rows, prefix)
        assert torch.equal(classifier.generate(packed), expected)
        said(classifier, packed)
        assert torch.equal(classifier.generate(packed), expected)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "original_max_position_embeddings": 24,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
DROPOUT = (*LORA, "peft.dropout=0.2")


@pytest.mark.slow
def test_dropout_is_live_in_training_and_dead_in_evaluation(fast_calls):
    classifier, packer = build("llama", peft=DROPOUT)
    for name, parameter in classifier.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.05  # so small that what the layers say is nearly linear in it
    rows = some_rows()
    packed, padded = packer.score(rows, 3), pad(rows, 0, "right")
    with classifier.model.disable_adapter(), torch.no_grad():
        base = classifier.features(padded)
    with torch.no_grad():
        whole = classifier.features(packed)
        assert torch.equal(classifier.features(packed), whole)
        near(whole, classifier.features(padded))
    classifier.train()
    drawn = {}
    for name, texts, count in (("packed", packed, 200), ("padded", padded, 100)):
        torch.manual_seed(0)
        drawn[name] = torch.stack([classifier.features(texts).detach() for _ in range(count)])
    effect = (whole - base).norm()
    assert effect > 0.01 * base.norm()
    lost = {name: (values - whole).flatten(1).norm(dim=1) / effect for name, values in drawn.items()}
    mean = {name: float(values.mean()) for name, values in lost.items()}
    noise = sum(float(values.var()) / len(values) for values in lost.values()) ** 0.5
    assert abs(mean["packed"] - mean["padded"]) < 5 * noise < 0.3 * mean["padded"]  # as much is dropped as by PEFT
    assert mean["packed"] > 0.1
    error = float((drawn["packed"].mean(0) - whole).norm() / effect)
    assert error < 2 * mean["packed"] / 200**0.5 + 0.02
    assert len(fast_calls) == 2 * (2 + 200)


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
def test_the_same_seed_drops_the_same(task, fast_calls):
    classifier, packer = build("llama", task, peft=DROPOUT)
    rows, found = some_rows(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(learned(classifier, packer.train(rows, labels_of(rows), 3), rows))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])
    assert fast_calls


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_that_is_switched_off_says_nothing(kind):
    classifier, packer = build(kind)
    bare, _ = build(kind, peft=("peft=head",))
    rows = some_rows()
    packed = packer.score(rows, 3)
    with torch.no_grad():
        before = classifier.features(packed)
        with classifier.model.disable_adapter():
            found = classifier.features(packed)
        near(found, bare.features(pad(rows, 0, "right")))
        assert (found - before).abs().max() > 0.1
        assert torch.equal(classifier.features(packed), before)


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize(
    "peft",
    [
        (*LORA, "peft.use_rslora=true"),
        ("peft=dora", "peft.r=3"),
        ("peft=dora", "peft.r=3", "peft.target_modules=[k_proj,up_proj]"),
        (*LORA, "peft.target_modules=[q_proj,v_proj]"),
        (*LORA, "peft.target_modules=[k_proj,up_proj]"),
        (*LORA, "peft.target_modules='.*layers.1.*(v_proj|down_proj)'"),
        (*LORA, "peft.layers_to_transform=[1]"),
        (*LORA, "peft.layers_to_transform=[0]"),
    ],
    ids=lambda peft: peft[-1],
)
def test_adapters_that_the_fast_layers_support(peft, task, fast_calls):
    compare(*build("llama", task, peft), some_rows())
    assert fast_calls


def test_a_head_alone_is_trained(fast_calls):
    compare(*build("llama", peft=("peft=head",)), some_rows())
    assert fast_calls


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
def test_an_untuned_model_is_scored(task, fast_calls):
    classifier, packer = build("llama", task, ("peft=none",))
    rows = some_rows()
    for prefix in (0, 3):
        agree(said(classifier, packer.score(rows, prefix)), said(classifier, pad(rows, 0, "right")))
    assert fast_calls


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma3_text"])
def test_a_model_that_has_scored_can_be_trained(kind):
    """Lightning evaluates in inference mode, whose tensors no gradient goes through."""
    classifier, packer = build(kind)
    rows = some_rows()
    with torch.inference_mode():
        classifier(packer.score(rows, 3), PrefixCache())
    compare(classifier, packer, rows)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 12}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rms_norm_eps": 0.1}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"head_dim": 6, "sliding_window": None}),
        ("qwen2", {"num_hidden_layers": 3}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"rms_norm_eps": 0.1}),
        ("smollm3", {"no_rope_layers": [0, 1]}),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("gemma3_text", {"rms_norm_eps": 0.1}),
        ("gemma3_text", {"query_pre_attn_scalar": 20, "attention_bias": True}),
    ],
)
@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
def test_shapes_that_the_fast_layers_support(kind, changes, task, fast_calls):
    compare(*build(kind, task, **changes), some_rows())
    assert fast_calls


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neox", {"attention_bias": False}),
        ("phi", {"qk_layernorm": True}),
        ("phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25}}),
        ("phi3", {"sliding_window": None}),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
def test_shapes_of_other_families(kind, changes, task):
    compare(*build(kind, task, **changes), some_rows())


@pytest.mark.parametrize(
    ("kind", "peft", "changes"),
    [
        ("llama", ("peft=ia3",), {}),
        ("llama", ("peft=full",), {}),
        ("qwen2", (*LORA, "peft.bias=all"), {}),
        ("qwen2", (*LORA, "peft.bias=lora_only"), {}),
        ("llama", (*LORA, "peft.bias=all"), {"attention_bias": True}),
        ("llama", LORA, {"hidden_act": "gelu"}),
        ("gpt2", ("peft=ia3", "peft.target_modules=[c_attn,c_fc]", "peft.feedforward_modules=[c_fc]"), {}),
        ("gpt2", ("peft=full",), {}),
        ("gpt2", (*LORA, "peft.bias=all"), {}),
        ("qwen3", ("peft=full",), {}),
        ("gemma3_text", ("peft=full",), {}),
        ("gemma3_text", LORA, {"hidden_activation": "gelu"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", [TASKS[0], TASKS[3], TASKS[4]], ids=["head", "label", "labels"])
def test_what_the_fast_layers_do_not_support_goes_through_those_of_transformers(kind, peft, changes, task, fast_calls):
    compare(*build(kind, task, peft, **changes), some_rows())
    assert not fast_calls


def test_capped_logits_are_left_to_transformers(fast_calls):
    scores, _ = compare(*build("gemma3_text", TASKS[1], final_logit_softcapping=2.0), some_rows())
    assert not fast_calls
    free, _ = build("gemma3_text", TASKS[1])
    assert (said(free, pad(some_rows(), 0, "right"))["logits"] - scores["logits"]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma3_text", {"final_logit_softcapping": 0.1}),
        ("granite", {"logits_scaling": 9.0}),
        ("cohere", {"logit_scale": 9.0}),
    ],
)
def test_logits_of_label_words_alone_are_capped_and_scaled_as_those_of_the_vocabulary(kind, changes):
    compare(*build(kind, TASKS[3], ("peft=full",), **changes), some_rows())


def test_attention_dropout_is_left_to_transformers(fast_calls):
    classifier, packer = build("llama", attention_dropout=0.5)
    rows = some_rows()
    agree(said(classifier, packer.score(rows, 3)), said(classifier, pad(rows, 0, "right")))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(learned(classifier, packer.train(rows, labels_of(rows), 3), rows)["loss"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not fast_calls


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma3_text"])
def test_recomputed_activations_give_the_same_gradients(kind, task, fast_calls):
    rows, found, calls = some_rows(), [], []
    for checkpointing in (False, True):
        classifier, packer = build(kind, task, DROPOUT, checkpointing=checkpointing)
        fast_calls.clear()
        torch.manual_seed(3)
        found.append(learned(classifier, packer.train(rows, labels_of(rows), 3), rows))
        calls.append(len(fast_calls))
    agree(found[1], found[0])
    assert calls == ([2, 4] if kind in ARCHITECTURES else [0, 0])


RATE, STEPS = 1e-3, 3


def trained_steps(classifier, texts, rows):
    """Take some steps of plain descent, and return the largest gradient."""
    optimizer = torch.optim.SGD([part for part in classifier.parameters() if part.requires_grad], lr=RATE)
    largest = 0.0
    for _ in range(STEPS):
        learned(classifier, texts, rows)
        gradients = [part.grad for group in optimizer.param_groups for part in group["params"]]
        largest = max(largest, *(float(gradient.abs().max()) for gradient in gradients))
        optimizer.step()
    return largest


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft 0.21 with transformers 5.23
def test_the_base_stays_as_it_is_and_the_adapter_is_plain_peft(tmp_path, fast_calls):
    from peft import PeftModel

    rows, states = some_rows(), {}
    padded = pad(rows, 0, "right")
    for name in ("padded", "packed"):
        classifier, packer = build("llama")
        parts = dict(classifier.named_parameters())
        before = {path: part.detach().clone() for path, part in parts.items()}
        largest = trained_steps(
            classifier, padded if name == "padded" else packer.train(rows, labels_of(rows), 3), rows
        )
        after = dict(classifier.named_parameters())
        assert all(after[path] is part for path, part in parts.items())  # what an optimizer or PEFT holds is the same
        frozen = [path for path, part in parts.items() if not part.requires_grad]
        assert len(frozen) > 15
        assert all(torch.equal(after[path], before[path]) for path in frozen)
        assert all(not torch.equal(after[path], before[path]) for path in before.keys() - set(frozen))
        classifier.model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        states[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    assert fast_calls
    assert len(states["packed"]) == 2 * 2 * 7 + 1
    shapes = [{path: (value.shape, value.dtype) for path, value in state.items()} for state in states.values()]
    assert shapes[0] == shapes[1]
    for path, value in states["padded"].items():
        limit = rounding(float(value.abs().max())) + drift(RATE, STEPS, gradient=largest)
        torch.testing.assert_close(states["packed"][path], value, rtol=0, atol=limit)
    fresh, _ = build("llama", peft=("peft=none",))
    reloaded = SequenceClassifier(PeftModel.from_pretrained(fresh.model, tmp_path / "packed")).eval()
    agree(said(reloaded, padded), said(classifier, packer.score(rows, 3)))


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
def test_a_model_whose_weights_were_stacked_can_be_saved(task, tmp_path):
    classifier, packer = build("llama", task, ("peft=none",))
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    rows = some_rows()
    found = said(classifier, packer.score(rows, 3))
    classifier.model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    model = type(classifier.model).from_pretrained(tmp_path)
    again, _ = classify(model, task, ("peft=none",))
    agree(said(again, packer.score(rows, 3)), found)


def test_padded_rows_are_computed_as_before():
    for kind in ("llama", "gpt2"):
        classifier, packer = build(kind)
        rows = some_rows()
        padded = pad(rows, 0, "left")
        before = said(classifier, padded), learned(classifier, padded, rows)
        said(classifier, packer.score(rows, 3))
        agree(said(classifier, padded), before[0])
        agree(learned(classifier, padded, rows), before[1])


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
def test_models_that_share_weights_both_work(task, fast_calls):
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if task is BOTH[0] else AutoModelForCausalLM
    model = auto.from_config(shape("llama"))
    spread(model)
    pairs = [
        classify(clone_sharing_weights(model), task, peft, seed)
        for seed, peft in enumerate((LORA, LORA, (*LORA, "peft.r=5")))
    ]
    rows = some_rows()
    padded = pad(rows, 0, "right")
    expected = [(said(classifier, padded), learned(classifier, padded, rows)) for classifier, _ in pairs]
    assert (expected[0][0]["logits"] - expected[1][0]["logits"]).abs().max() > 0.1
    for _ in range(2):  # the second time after the others have come by
        for (classifier, packer), (scores, steps) in zip(pairs, expected, strict=True):
            agree(said(classifier, packer.score(rows, 3)), scores)
            agree(learned(classifier, packer.train(rows, labels_of(rows), 3), rows), steps)
            agree(said(classifier, padded), scores)
    assert fast_calls
    places = [
        {name: part.data_ptr() for name, part in classifier.named_parameters() if "base_layer" in name}
        for classifier, _ in pairs
    ]
    assert len(places[0]) == 14
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_weights_that_have_moved_are_those_that_are_used(kind, task):
    """As from one device to another, which gives a parameter other data."""
    classifier, packer = build(kind, task, attention_bias=True)
    rows = some_rows()
    said(classifier, packer.score(rows, 3))
    classifier._apply(torch.clone)
    for name, part in classifier.named_parameters():
        if "lora" not in name and any(moved in name for moved in ("q_proj", "input_layernorm", "model.norm")):
            part.data *= 1.5
    compare(classifier, packer, rows)


NF4 = ("peft=qlora", "peft.r=3", "peft.alpha=6")


def four_bit(task, *overrides, precision=Precision.fp32):
    """Return a classifier over the tiny model in 4 bits, and its packer."""
    config = settings("model=tiny", *NF4, *overrides)
    backbone = locate_backbone(config.model)
    tokenizer = load_tokenizer(backbone)
    device = torch.device("cpu")
    load = Loading(storage=config.peft, attention=Attention.auto, precision=precision, device=device)
    torch.manual_seed(0)
    if task[0] == "seq_cls":
        model = load_classifier(backbone, tokenizer, ["a", "b", "c"], load)
    else:
        model = load_language_model(backbone, tokenizer, load)
    return classify(model, task, (*NF4, *overrides))


@pytest.mark.parametrize("task", [TASKS[0], TASKS[1], TASKS[4]], ids=["head", "answer", "labels"])
@pytest.mark.parametrize("override", ["peft.double_quant=true", "peft.double_quant=false"])
def test_four_bit_weights_multiply_as_those_of_transformers(task, override, fast_calls):
    classifier, packer = four_bit(task, override)
    layer = base_of(classifier.model).base_model.layers[0].self_attn.q_proj.get_base_layer()
    assert type(layer).__name__ == "Linear4bit"
    before = layer.weight.data.clone()
    compare(classifier, packer, some_rows())
    assert torch.equal(layer.weight.data, before)
    assert fast_calls


def test_four_bit_weights_are_rounded_as_those_of_transformers(fast_calls):
    rows = some_rows(count=6)
    padded = pad(rows, 0, "right")
    exact, _ = four_bit(TASKS[0])
    truth = said(exact, padded) | learned(exact, padded, rows)
    classifier, packer = four_bit(TASKS[0], precision=Precision.bf16)
    with torch.autocast("cpu", torch.bfloat16):
        apart = said(classifier, padded) | learned(classifier, padded, rows)
        packed = packer.train(rows, labels_of(rows), 3)
        found = said(classifier, packer.score(rows, 3)) | learned(classifier, packed, rows)
    assert_rounded_alike(found, apart, truth)
    assert fast_calls


def test_four_bit_weights_of_another_arithmetic_are_left_to_transformers(fast_calls):
    classifier, packer = four_bit(TASKS[0], "peft.compute_dtype=bf16")
    rows = some_rows()
    agree(said(classifier, packer.score(rows, 3)), said(classifier, pad(rows, 0, "right")), **SHORT)
    assert not fast_calls


WINDOWS = [
    ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    ("mistral", {"sliding_window": 4}),
    ("phi3", {"sliding_window": 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 4}),
]


@pytest.mark.parametrize("task", [TASKS[0], TASKS[1], TASKS[5]], ids=["head", "answer", "full"])
@pytest.mark.parametrize(("kind", "changes"), WINDOWS, ids=[kind for kind, _ in WINDOWS])
@pytest.mark.parametrize("begin", [BEGIN, [*BEGIN, 8, 9, 5]], ids=["short prefix", "long prefix"])
def test_rows_longer_than_the_window_of_a_model(kind, changes, task, begin, fast_calls):
    classifier, packer = build(kind, task, **changes)
    rows = rows_of(1, 12, 3, 7, begin=begin)
    scores, _ = compare(classifier, packer, rows, (0, len(begin)))
    unlimited, _ = build(kind, task, **changes | {"sliding_window": 40})
    assert (said(unlimited, pad(rows, 0, "right"))["logits"] - scores["logits"]).abs().max() > 1e-2
    cache = PrefixCache()
    for _ in range(2):
        agree(said(classifier, packer.score(rows, len(begin)), cache), scores)
    assert not fast_calls


def test_a_branch_has_the_window_of_its_label():
    """Compared row by row and label by label, each by itself."""
    classifier, packer = build("mistral", TASKS[4], sliding_window=4)
    rows = rows_of(1, 12, 3, 7, begin=BEGIN)
    expected = torch.zeros(len(rows), len(SEVERAL))
    for number, row in enumerate(rows):
        for label, answer in enumerate(SEVERAL):
            with torch.no_grad():
                likely = base_of(classifier.model)(torch.tensor([row + answer])).logits[0].log_softmax(-1)
            expected[number, label] = sum(likely[len(row) - 1 + place, token] for place, token in enumerate(answer))
    for prefix in (0, 3):
        logits = said(classifier, packer.score(rows, prefix))["logits"]
        near(logits, expected)


@pytest.mark.parametrize("first", [0, 1], ids=["short rows first", "long rows first"])
def test_short_rows_and_rows_longer_than_the_window_share_a_prefix(first, fast_calls):
    """The short ones go through the fast layers, the others through those of transformers."""
    classifier, packer = build("mistral", sliding_window=8)
    cache = PrefixCache()
    for lengths, own in (((2, 4), True), ((12, 2), False), ((3, 3, 1), True))[first:]:
        rows = rows_of(*lengths, begin=BEGIN)
        fast_calls.clear()
        found = said(classifier, packer.score(rows, 3), cache)
        assert bool(fast_calls) == own
        agree(found, said(classifier, pad(rows, 0, "right")))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_whatever_the_attention_of_padded_rows(kind, attention):
    compare(*build(kind, attn_implementation=attention), some_rows())


@pytest.mark.parametrize("task", BOTH, ids=["head", "labels"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_what_is_compiled_computes_the_same(kind, task, monkeypatch, fast_calls):
    classifier, packer = build(kind, task)
    rows = some_rows()
    packed = packer.train(rows, labels_of(rows), 3)
    expected = learned(classifier, packed, rows)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    agree(learned(classifier, packed, rows), expected)
    assert len(fast_calls) == 4
