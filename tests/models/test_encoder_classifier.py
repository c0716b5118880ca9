"""Encoders: logits and gradients are those of transformers' own classifier, padded on either side or packed."""

import shutil

import encoders
import pytest
import torch
from rounding import agree, rounding
from safetensors.torch import load_file, save_file

from sentexp.config import Attention, Precision, SequenceClassification, from_conf, load_config
from sentexp.data.batch import pad
from sentexp.data.packing import Packer
from sentexp.data.prompts import build_prompt, pair_separator
from sentexp.data.text_parts import PAIR
from sentexp.data.tokens import encode
from sentexp.errors import UserError
from sentexp.models.adapters import attach, trainable_state
from sentexp.models.encoder_classifier import EncoderClassifier, classifier_over
from sentexp.models.encoders import ENCODERS
from sentexp.models.loading import Loading, clone_sharing_weights, load_classifier, load_tokenizer
from sentexp.models.pretrained import Backbone
from sentexp.models.structure import base_of, head_modules, shardable_parts

LABELS = ["negative", "neutral", "positive"]
KINDS = [
    *((kind, {}) for kind in ENCODERS),
    ("eurobert", {"classifier_pooling": "bos"}),
    ("eurobert", {"classifier_pooling": "mean"}),
    ("modernbert", {"classifier_pooling": "mean"}),
    ("modernbert", {"global_attn_every_n_layers": 3, "num_hidden_layers": 3}),
    ("deberta-v2", {"position_biased_input": True, "type_vocab_size": 2}),
]
PEFTS = ("lora", "qlora", "dora", "ia3", "head", "full", "none")
ROWS = [[2, *range(40, 50), 3], [2, 9, 3], [2, *range(20, 44), 3], [2, 70, 71, 3]]  # beyond the window of ModernBERT


def names(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else value


def load(folder, *words, rows=None):
    peft = load_config("model=tiny", *words).peft
    backbone = Backbone(folder=folder, revision="")
    how = Loading(
        storage=peft,
        attention=Attention.auto,
        precision=Precision.fp32,
        device=torch.device("cpu"),
        trains_backbone="peft=full" in words,
    )
    return load_classifier(backbone, load_tokenizer(backbone), LABELS, how, rows), peft


def spread(model):
    """Draw what trains so large that every part shows in what a model says."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scales = parameter.ndim == 1 and not name.endswith("bias")
            parameter.data.normal_(mean=float(scales), std=0.3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function from an architecture to the folder of a pretrained model of it."""
    written = {}

    def folder(kind, **changes):
        key = (kind, *changes.items())
        if key not in written:
            written[key] = tmp_path_factory.mktemp(kind)
            encoders.write_encoder(written[key], kind, **changes)
        return written[key]

    return folder


@pytest.mark.parametrize("kind", ["bert", "albert", "electra", "roberta", "modernbert", "deberta-v2"])
def test_pairs_have_the_logits_of_transformers(kind, folders):
    changes = {"position_biased_input": True, "type_vocab_size": 2} if kind == "deberta-v2" else {}
    folder = folders(kind, **changes)
    model, _ = load(folder, "peft=none")
    spread(model.eval())
    tokenizer = load_tokenizer(Backbone(folder=folder, revision=""))
    pairs = [("a warm and funny film", "the cast"), ("dull", "plot of it all"), ("so so", "film")]
    prompt = build_prompt(from_conf(SequenceClassification, template="{text}"), tokenizer, LABELS, pairs=True)
    rows, _ = encode([f"{first}{PAIR}{second}" for first, second in pairs], tokenizer, prompt, 100)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    known = getattr(model.config, "type_vocab_size", 0) > 1
    with torch.no_grad():
        expected = []
        for first, second in pairs:
            read = tokenizer(first, second, return_tensors="pt", return_token_type_ids=True)
            assert read["token_type_ids"].sum() > 1
            if not known:
                del read["token_type_ids"]
            expected.append(model(**read).logits[0])
        expected = torch.stack(expected)
        separator = pair_separator(prompt, tokenizer)
        classifier = classifier_over(model, separator=separator).eval()
        for side in ("left", "right"):
            agree(
                {"logits": classifier(pad(rows, tokenizer.pad_token_id, side)).logits},
                {"logits": expected},
                silent=True,
            )
        if ENCODERS[kind].packs:
            agree({"logits": classifier(Packer(causal=False).score(rows, 0)).logits}, {"logits": expected}, silent=True)
        without = classifier_over(model).eval()(pad(rows, tokenizer.pad_token_id, "right")).logits
    assert ((without - expected).abs().max() > 100 * rounding()) == known


def learned(model, logits):
    """Return logits, and the gradients of a loss that weighs each of them, by name."""
    model.zero_grad()
    targets = torch.arange(len(logits)) % len(LABELS)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (losses * torch.linspace(0.5, 2, len(logits))).sum().backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.requires_grad}
    return {"logits": logits.detach()} | gradients


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=names)
def test_logits_and_gradients_are_those_of_transformers(kind, changes, folders):
    model, peft = load(folders(kind, **changes), "peft=lora", "peft.r=2", "peft.alpha=4")
    trained, _ = attach(model, peft)
    spread(trained)
    classifier = classifier_over(trained)
    assert isinstance(classifier, EncoderClassifier)
    padding = model.config.pad_token_id
    right = pad(ROWS, padding, "right")
    expected = learned(trained, base_of(trained)(input_ids=right.ids, attention_mask=right.mask).logits)
    assert expected["logits"].std(0).min() > 100 * rounding(float(expected["logits"].abs().max()))
    layouts = [right, pad(ROWS, padding, "left")]
    if ENCODERS[kind].packs:
        layouts.append(Packer(causal=False).score(ROWS, 0))
    for texts in layouts:
        agree(learned(trained, classifier(texts).logits), expected)


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind not in ("albert", "deberta-v2", "mpnet")])
def test_checkpointing_changes_nothing_of_packed_rows(kind, folders):
    model, peft = load(folders(kind), "peft=lora", "peft.r=2")
    trained, _ = attach(model, peft)
    spread(trained)
    packed = Packer(causal=False).score(ROWS, 0)
    expected = learned(trained, classifier_over(trained).train()(packed).logits)
    base_of(trained).activation_checkpointing_enable({"use_reentrant": False})
    agree(learned(trained, classifier_over(trained).train()(packed).logits), expected, silent=True)


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "bert"])
def test_a_text_that_holds_the_pad_token_is_read_to_its_end(kind, folders):
    model, _ = load(folders(kind))
    padding = model.config.pad_token_id
    classifier = classifier_over(model).eval()
    rows = [[2, 50, padding, 51, 3], [2, 50, 51, 3]]
    layouts = [pad(rows, padding, side) for side in ("right", "left")]
    layouts += [Packer(causal=False).score(rows, 0)] if ENCODERS[kind].packs else []
    with torch.no_grad():
        alone = torch.cat([classifier(pad([row], padding, "right")).logits for row in rows])
        for texts in layouts:
            found = classifier(texts).logits
            torch.testing.assert_close(found, alone, rtol=0, atol=rounding(float(alone.abs().max())))


@pytest.mark.parametrize("peft", PEFTS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_the_whole_head_trains_and_nothing_else_of_the_model(kind, peft, folders):
    model, config = load(folders(kind), f"peft={peft}")
    sizes = sum(part.numel() for module in head_modules(model).values() for part in module.parameters())
    base_sizes = sum(part.numel() for part in model.parameters()) if peft != "qlora" else None
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    trained, audit = attach(model, config)
    assert audit.trainable["head"] == (0 if peft == "none" else sizes)
    assert (audit.trainable["adapter"] > 0) == (peft in ("lora", "qlora", "dora", "ia3"))
    assert base_sizes is None or audit.total - audit.trainable["adapter"] == base_sizes
    if peft in ("none", "full"):
        return
    optimizer = torch.optim.SGD([part for part in trained.parameters() if part.requires_grad], lr=0.1)
    start = {name: value.clone() for name, value in trainable_state(trained).items()}
    classifier_over(trained).losses(pad(ROWS, 0, "right"), torch.tensor([0, 1, 2, 0])).sum().backward()
    optimizer.step()
    moved = trainable_state(trained)
    heads = [name for name in moved if not any(part.startswith(("lora_", "ia3_")) for part in name.split("."))]
    assert sum(moved[name].numel() for name in heads) == sizes
    assert all(not torch.equal(moved[name], start[name]) for name in heads)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): part
        for name, part in trained.named_parameters()
    }
    frozen = [name for name in before if not name.startswith(tuple(head_modules(trained)))]
    assert len(frozen) > 10
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_biases_of_an_encoder_train_with_its_head(folders):
    model, config = load(folders("bert"), "peft.bias=all", "peft.target_modules=[query]")
    _, audit = attach(model, config)
    layer_norms, linear = 1 + 2 * 2, 2 * (4 * 32 + 48 + 32)
    assert audit.trainable["norms and biases"] == 32 * layer_norms + linear


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_new_head_is_drawn_by_the_seed_alone_in_a_sweep_as_well(kind, folders):
    torch.manual_seed(3)
    model, _ = load(folders(kind))
    torch.manual_seed(3)
    clone = clone_sharing_weights(load(folders(kind), rows=None)[0])
    torch.manual_seed(3)
    clone = clone_sharing_weights(clone)
    torch.manual_seed(4)
    other = clone_sharing_weights(clone)
    for path, module in head_modules(model).items():
        for name, part in module.named_parameters():
            assert torch.equal(part, head_modules(clone)[path].get_parameter(name)), (path, name)
    assert model.drawn
    drawn = {path: module for path, module in head_modules(model).items() if path in model.drawn}
    for path, module in drawn.items():
        weights = [name for name, part in module.named_parameters() if part.ndim > 1]
        for name in weights:
            assert not torch.equal(module.get_parameter(name), head_modules(other)[path].get_parameter(name))


def test_a_pretrained_pooler_is_kept_and_the_rest_of_the_head_is_new(tmp_path):
    written = encoders.write_encoder(tmp_path, "bert", "AutoModelForNextSentencePrediction")
    model, _ = load(tmp_path)
    assert model.drawn == ["classifier"]
    assert torch.equal(model.bert.pooler.dense.weight, written.bert.pooler.dense.weight)


def test_a_head_for_tokens_is_no_head_for_texts(tmp_path):
    written = encoders.write_encoder(tmp_path, "bert", "AutoModelForTokenClassification", num_labels=3)
    model, _ = load(tmp_path)
    assert not torch.equal(model.classifier.weight, written.classifier.weight)


@pytest.mark.parametrize("kind", ENCODERS)
def test_missing_weights_of_the_encoder_are_refused(kind, folders, tmp_path):
    shutil.copytree(folders(kind), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name, value in weights.items() if "layer" in name and value.ndim > 1)
    save_file({name: value for name, value in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights that its architecture needs.*{lost}"):
        load(tmp_path / "model")


def test_every_part_can_be_sharded_before_what_holds_it(folders):
    model, _ = load(folders("bert"))
    parts = shardable_parts(model)
    assert parts.index(model.bert.pooler) < parts.index(model.bert) < parts.index(model.classifier)
