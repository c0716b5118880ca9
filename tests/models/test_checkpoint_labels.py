"""Checkpoints that are classifiers already: their labels are the data's by name, whatever their order."""

import encoders
import numpy as np
import pytest
import torch
from rounding import rounding
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from sentexp.errors import UserError
from sentexp.inference.scorer import Scorer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.saved import read_trained
from sentexp.models.structure import base_of, head_modules
from sentexp.run.build import build_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.tracking.predictions import file_name, read_predictions

KINDS = ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("roberta", "modernbert", "llama"))]


def write_llama(folder, config, **named):
    """Write a Llama that classifies, with the tokenizer of the tiny one."""
    tiny = locate_backbone(config().model).folder
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.2, **named,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(shape).save_pretrained(folder)


@pytest.fixture
def checkpoint(tmp_path, config):
    """Return a function that writes a classifier with these labels, and returns the override that names it."""

    def write(kind, labels):
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: row for row, label in enumerate(labels)}}
        folder = tmp_path / "checkpoint"
        if kind == "llama":
            write_llama(folder, config, **named)
        else:
            encoders.write_encoder(folder, kind, "AutoModelForSequenceClassification", **named)
        return f"model.path={folder}"

    return write


def own_words(path, texts):
    """Return what transformers alone says: the probability of each label, by its name."""
    folder = path.partition("=")[2]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    said = []
    for text in texts:
        rows = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        said.append(logits.softmax(-1)[0].numpy())
    return {model.config.id2label[row]: np.array(said)[:, row] for row in range(model.config.num_labels)}


@pytest.mark.parametrize("labels", [["Positive", "NEGATIVE"], ["negative", "positive"]], ids=["swapped", "as they are"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_is_evaluated_as_it_is_by_the_names_of_its_labels(
    kind,
    labels,
    checkpoint,
    finished,
    texts,
):
    path = checkpoint(kind, labels)
    result = finished(path, "peft=none")
    said = read_predictions(result.folder / file_name("test"))
    expected = {name.casefold(): values for name, values in own_words(path, texts).items()}
    assert said.labels == ["negative", "positive"]
    for row, label in enumerate(said.labels):
        np.testing.assert_allclose(said.probabilities[:, row], expected[label], rtol=0, atol=rounding())
    assert abs(expected["negative"] - expected["positive"]).max() > 100 * rounding()
    np.testing.assert_allclose(
        Scorer(read_trained(result.weights)).probabilities(texts), said.probabilities, rtol=0, atol=rounding()
    )


@pytest.mark.parametrize("peft", ["lora", "full", "head"])
def test_training_starts_from_its_head(peft, checkpoint, config):
    path = checkpoint("roberta", ["positive", "negative"])
    written = AutoModelForSequenceClassification.from_pretrained(path.partition("=")[2])
    inputs = prepare_inputs(resolve_inputs(config(path, f"peft={peft}")), show=False)
    model, _ = build_model(inputs)
    head = head_modules(model)["classifier"]
    assert torch.equal(head.dense.weight, written.classifier.dense.weight)
    assert torch.equal(head.out_proj.weight, written.classifier.out_proj.weight[[1, 0]])
    assert torch.equal(head.out_proj.bias, written.classifier.out_proj.bias[[1, 0]])
    assert base_of(model).config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_takes_nothing_of_the_old_one(kind, checkpoint, config):
    path = checkpoint(kind, ["one", "two", "three"])
    written = AutoModelForSequenceClassification.from_pretrained(path.partition("=")[2])
    inputs = prepare_inputs(resolve_inputs(config(path, "model.head=new")), show=False)
    model, _ = build_model(inputs)
    for module_path, module in head_modules(model).items():
        old = written.get_submodule(module_path)
        for name, part in module.named_parameters():
            if part.ndim > 1:
                assert part.shape != old.get_parameter(name).shape or not torch.equal(part, old.get_parameter(name))


@pytest.mark.slow
def test_a_run_from_its_head_is_read_again(checkpoint, finished, texts):
    result = finished(checkpoint("bert", ["positive", "negative"]), "peft=lora")
    said = read_predictions(result.folder / file_name("test")).probabilities
    np.testing.assert_allclose(Scorer(read_trained(result.weights)).probabilities(texts), said, rtol=0, atol=rounding())


def test_labels_without_names_are_named_by_the_user(checkpoint, config):
    path = checkpoint("bert", ["LABEL_0", "LABEL_1"])
    assert resolve_inputs(config(path, "model.labels=[negative,positive]")).head_rows == [0, 1]
    assert resolve_inputs(config(path, "model.labels=[Positive,Negative]")).head_rows == [1, 0]
    with pytest.raises(UserError) as error:
        resolve_inputs(config(path))
    assert "does not say what its labels LABEL_0, LABEL_1 mean" in str(error.value)
    assert "model.labels=[negative,positive], or train a new head with model.head=new." in str(error.value)


def test_names_and_the_head_are_parts_of_an_identity_where_they_are_given(checkpoint, config):
    from sentexp.run.inputs import run_identity

    path = checkpoint("bert", ["LABEL_0", "LABEL_1"])
    settings = ("model.labels=[negative,positive]", "model.labels=[positive,negative]", "model.head=new")
    identities = {run_identity(resolve_inputs(config(path, setting))) for setting in settings}
    assert len(identities) == len(settings)


@pytest.mark.parametrize(
    ("labels", "overrides", "sentence"),
    [
        (["negative", "neutral", "positive"], [], r"are negative, neutral, positive, and those of data=sst2 are neg"),
        (["up", "down"], [], r"The labels of model.path=.* are up, down, and those of data=sst2 are neg"),
        (["up", "down"], ["model.labels=[a,b,c]"], r"must name the 2 classes of model.path=.* in their order \(up"),
        (["up", "down"], ["task.head_init=label_words"], r"are up, down"),
        (["positive", "negative"], ["task.head_init=label_words"], r"has a head: leave it auto, or give model.head=n"),
    ],
)  # fmt: skip
def test_other_labels_are_refused_with_both_lists(labels, overrides, sentence, checkpoint, config):
    with pytest.raises(UserError, match=sentence):
        resolve_inputs(config(checkpoint("bert", labels), *overrides))


@pytest.mark.parametrize("given", ["[negative]", "[a,A]", "positive", "{a: b}"])
def test_labels_are_a_list_of_different_names(given, config):
    with pytest.raises(UserError, match=r"model.labels=.* must be a list of different labels"):
        config(f"model.labels={given}")


def test_a_pretrained_model_has_no_labels(config, tmp_path):
    encoders.write_encoder(tmp_path / "bert", "bert")
    with pytest.raises(UserError, match=r"model.labels=\[a,b\] are the classes of a classifier, and .* leave it null"):
        resolve_inputs(config(f"model.path={tmp_path / 'bert'}", "model.labels=[a,b]"))
