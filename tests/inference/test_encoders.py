"""Encoders from the configuration to the files: trained, read again, exported; what cannot be used is refused."""

import json
import re
import warnings
from importlib.util import find_spec

import encoders
import numpy as np
import pytest
import torch
from methods import WORDS, plus
from rounding import drift, rounding
from safetensors.torch import load_file
from storages import STORAGES
from tiers import exhaustive_but

from sentexp.config import ExportFormat, ExportType
from sentexp.errors import UserError
from sentexp.export.exporters import read, write
from sentexp.export.mlflow_model import read_model, save_model
from sentexp.inference.run_lookup import Finished
from sentexp.inference.scorer import Scorer
from sentexp.models.dequantize import is_packed
from sentexp.models.encoders import ENCODERS
from sentexp.models.loading_code import EXAMPLE
from sentexp.models.peft_methods import NOT_OVER_ENCODERS
from sentexp.models.saved import find_base, read_trained
from sentexp.models.targets import is_inside
from sentexp.plan.command import plan
from sentexp.run.inputs import resolve_inputs
from sentexp.run.train import train
from sentexp.tracking.predictions import file_name, read_predictions

NOWHERE = ("tracking=none",)
ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Return a function from an architecture to the override that names a pretrained model of it."""
    written = {}

    def override(kind):
        if kind not in written:
            written[kind] = tmp_path_factory.mktemp(kind)
            encoders.write_encoder(written[kind], kind)
        return f"model.path={written[kind]}"

    return override


@pytest.fixture
def tuned(finished, pretrained):
    """Return a function that trains an encoder for two epochs, once, and returns its result."""
    return lambda kind, *words: finished(pretrained(kind), "trainer.max_epochs=2", *words)


def said(result):
    return read_predictions(result.folder / file_name("test")).probabilities


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding())


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("bert", "deberta-v2") else pytest.mark.slow) for kind in ENCODERS]
)
def test_a_run_says_the_same_when_it_is_read_again(kind, tuned, texts):
    result = tuned(kind)
    assert said(result).std(0).min() > 10 * rounding(), "every text is answered alike"
    assert set(result.parameters.trainable) == set(result.parameters.frozen)
    assert result.parameters.trainable["head"] > result.parameters.frozen["head"] == 0
    close(Scorer(read_trained(result.weights)).probabilities(texts), said(result))


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["qlora", "dora", "ia3", "head", "full", "none"])
@pytest.mark.parametrize("kind", exhaustive_but(ENCODERS, "bert", "modernbert"))
def test_every_way_of_training_is_read_again(kind, peft, tuned, texts):
    result = tuned(kind, f"peft={peft}")
    close(Scorer(read_trained(result.weights)).probabilities(texts), said(result))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "kind", [kind if kind == "modernbert" else pytest.param(kind, marks=pytest.mark.slow) for kind in ENCODERS]
)
def test_encoders_are_packed_but_for_their_heads(kind, storage, tuned, texts):
    result = tuned(kind, "peft=lora", f"peft.quantization={storage}")
    scorer = Scorer(read_trained(result.weights))
    close(scorer.probabilities(texts), said(result))
    packed = {path for path, module in scorer.classifier.named_modules() if is_packed(module)}
    assert packed
    assert not any(is_inside(path.rpartition("base_model.model.")[2], ENCODERS[kind].head) for path in packed)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({*WORDS} - {kind.lower() for kind in NOT_OVER_ENCODERS}))
@pytest.mark.parametrize("kind", exhaustive_but(["bert", "modernbert", "deberta-v2"], "bert"))
def test_every_method_of_peft_is_read_again(kind, method, tuned, texts):
    if (kind, method) == ("modernbert", "bitfit"):
        with pytest.raises(UserError, match="peft=bitfit trains biases, and modernbert has none"):
            tuned(kind, *WORDS[method])
        return
    result = tuned(kind, *plus(WORDS[method]))
    assert result.parameters.frozen["head"] == 0
    adapted = [target for target in result.parameters.targets if target.startswith(tuple(ENCODERS[kind].head))]
    assert not adapted, "the head trains in full, and PEFT gives it no adapter"
    close(Scorer(read_trained(result.weights)).probabilities(texts), said(result))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_a_run_in_bfloat16_is_read_again(kind, tuned, texts):
    result = tuned(kind, "trainer.precision=bf16")
    found = Scorer(read_trained(result.weights)).probabilities(texts)
    # In bfloat16 the logits, of about 1, are rounded, and a probability changes by a quarter of what a logit does.
    np.testing.assert_allclose(found, said(result), rtol=0, atol=rounding(0.25, torch.bfloat16, terms=1, sums=4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "eurobert"])
def test_padded_rows_train_as_packed_ones(kind, pretrained, config, tmp_path):
    def trained(given):
        steps = ("trainer.max_steps=3", "optim.eps=1e-2", "optim.lr=1e-2", f"trainer.padding_free={given}")
        result = train(config(pretrained(kind), *steps, f"output_dir={tmp_path / given}"))
        return result.identity, load_file(next(result.weights.glob("*.safetensors")))

    (identity, packed), (other, padded) = trained("true"), trained("false")
    assert identity == other  # dropout of attention is none here, and masks of other dropout would differ
    for name, value in packed.items():
        torch.testing.assert_close(padded[name], value, rtol=0, atol=rounding() + drift(1e-2, 3, 1e-2, gradient=1.0))


@pytest.mark.parametrize("kind", ENCODERS)
def test_transformers_and_peft_alone_say_what_the_run_says(kind, tuned, texts):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = tuned(kind)
    trained = read_trained(result.weights)
    plain = AutoModelForSequenceClassification.from_pretrained(find_base(trained).folder, num_labels=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        model = PeftModel.from_pretrained(plain, trained.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    close(logits.softmax(-1).numpy(), said(result))


def run_lines(folder, monkeypatch):
    """Return what the lines in the card of a folder of weights give."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    names = {}
    with torch.no_grad():
        exec(code, names)
    return names["probabilities"].numpy()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
@pytest.mark.parametrize(("kind", "peft"), [*((kind, "lora") for kind in ENCODERS), ("bert", "head"), ("bert", "full")])
def test_the_lines_of_a_card_say_what_the_run_says(kind, peft, tuned, monkeypatch):
    result = tuned(kind, f"peft={peft}")
    (wanted,) = Scorer(read_trained(result.weights)).probabilities([EXAMPLE])
    close(run_lines(result.weights, monkeypatch), wanted)


@pytest.fixture
def of_several_labels(tmp_path):
    """Return a function that writes a classifier which gives several of its labels at once; and how it is named."""

    def write_classifier(*labels):
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: row for row, label in enumerate(labels)}}
        kind = {"problem_type": "multi_label_classification"}
        encoders.write_encoder(tmp_path / "base", "bert", "AutoModelForSequenceClassification", **named, **kind)
        return f"model.path={tmp_path / 'base'}"

    return write_classifier


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("peft", ["lora", "head", "full"])
def test_a_new_head_in_the_place_of_another_is_read_again(
    peft, of_several_labels, finished, texts, tmp_path, monkeypatch
):
    result = finished(of_several_labels("joy", "anger", "fear"), "model.head=new", f"peft={peft}")
    trained, folder = read_trained(result.weights), tmp_path / "merged"
    write(ExportFormat.merged, trained, find_base(trained), ExportType.float32, folder)
    close(read(ExportFormat.merged, folder, None)(texts), said(result))
    (wanted,) = Scorer(trained).probabilities([EXAMPLE])
    close(run_lines(result.weights, monkeypatch), wanted)


def test_a_card_does_not_say_that_an_untuned_classifier_was_trained(
    of_several_labels, finished, texts, tmp_path, command_line
):
    result = finished(of_several_labels("Positive", "negative"), "peft=none")
    target = tmp_path / "merged"
    code, _, errors = command_line("export", f"run={result.folder}", "format=merged", f"output={target}", *NOWHERE)
    assert code == 0, errors
    assert "A classifier of sentiment: nothing trained: the base model base (" in (target / "README.md").read_text()
    close(read(ExportFormat.merged, target, None)(texts), said(result))


GRAPHS = ("bert", "modernbert")
"""Encoders whose graph `make slow` tries: the others are exhaustive tests."""
FORMATS = [
    *((kind, "peft", "lora") for kind in ENCODERS),
    *((kind, "merged", "lora") for kind in ENCODERS),
    ("bert", "merged", "head"),
    ("distilbert", "merged", "full"),
    *(
        pytest.param(kind, "onnx", "lora", marks=(ONNX, pytest.mark.slow if kind in GRAPHS else pytest.mark.exhaustive))
        for kind in ENCODERS
    ),
]


@pytest.mark.parametrize(("kind", "form", "peft"), FORMATS)
def test_an_export_says_what_the_run_says(kind, form, peft, tuned, texts, tmp_path):
    result = tuned(kind, f"peft={peft}")
    trained = read_trained(result.weights)
    write(ExportFormat[form], trained, find_base(trained), ExportType.float32, tmp_path)
    close(read(ExportFormat[form], tmp_path, None)(texts), said(result))


def test_the_template_is_the_bare_text_and_the_head_starts_small(pretrained, config):
    spec = resolve_inputs(config(pretrained("bert"), "task.template=auto"))
    assert (spec.config.task.template, spec.config.task.head_init.name) == ("{text}", "normal")
    decoder = resolve_inputs(config("task.template=auto"))
    assert (decoder.config.task.template, decoder.config.task.head_init.name) == ("{text}\nSentiment:", "label_words")


def test_positions_that_are_taken_are_no_part_of_the_limit(pretrained, config):
    assert resolve_inputs(config(pretrained("bert"), "data.max_length=32")).positions == encoders.POSITIONS
    assert resolve_inputs(config(pretrained("roberta"), "data.max_length=32")).positions == encoders.POSITIONS - 2


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_a_plan_of_an_encoder_is_printed(kind, pretrained, config, capsys):
    plan([config(pretrained(kind), "trainer.max_steps=2")])
    assert "train" in capsys.readouterr().out


def test_baselines_of_an_encoder_read_what_its_head_reads(tuned):
    result = tuned("eurobert", "baseline=true")
    assert 0 <= result.baselines["linear_probe"].metrics["test/accuracy"] <= 1


def refused(config, *words):
    with pytest.raises(UserError) as error:
        resolve_inputs(config(*words))
    return str(error.value)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_writes_no_answers(kind, pretrained, config):
    words = refused(config, pretrained(kind), "task=causal_lm", "task.template=completion")
    assert f"is {kind}, an encoder, which writes no answers: use task=seq_cls" in words


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("t5", "is t5, an encoder-decoder, which sentexp does not support: it takes the encoders albert, bert"),
        ("camembert", "is camembert, which task=seq_cls does not support: it takes the encoders albert, bert"),
        ("vit", "is vit, which task=seq_cls does not support: it takes the encoders albert"),
        ("nonesuch", "has a config.json that transformers cannot read"),
    ],
)
def test_other_architectures_are_refused_by_name(kind, sentence, pretrained, config, tmp_path):
    folder = tmp_path / kind
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "model.safetensors").write_bytes(b"")
    assert sentence in refused(config, f"model.path={folder}")


def test_a_decoder_that_reads_in_both_directions_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3_text", "use_bidirectional_attention": True})
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    sentence = refused(config, f"model.path={tmp_path}")
    assert "is a gemma3_text whose tokens see those behind them (use_bidirectional_attention), which" in sentence


def test_label_words_are_of_language_models(pretrained, config):
    words = refused(config, pretrained("bert"), "task.head_init=label_words")
    assert "is bert, an encoder: leave it auto" in words


def test_albert_has_no_layers_to_compute_again(tuned):
    with pytest.raises(UserError, match=r"trainer.gradient_checkpointing=true .* \(albert\): leave it false"):
        tuned("albert", "trainer.gradient_checkpointing=true")


def test_layers_of_an_encoder_are_not_compiled(tuned):
    with pytest.raises(UserError, match=r"^trainer.compile=true compiles layers of .* is a bert: leave it false\.$"):
        tuned("bert", "trainer.compile=true")


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_run_of_a_sweep_trains_as_it_does_alone(kind, pretrained, config, tmp_path):
    def trained(folder, *words):
        result = train(config(pretrained(kind), "trainer.max_steps=3", f"output_dir={tmp_path / folder}", *words))
        return load_file(next(result.weights.glob("*.safetensors")))

    alone = trained("alone", "seed=5")
    first, second = (trained("sweep", "sweep.name=x", "baseline=false", f"seed={seed}") for seed in (4, 5))
    for name, value in alone.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=rounding() + drift(5e-3, 3, 1e-2))
    assert any(not torch.equal(first[name], second[name]) for name in alone)


def test_the_commands_take_an_encoder(tuned, command_line, capsys, tmp_path):
    result = tuned("roberta")
    run = f"run={result.folder}"
    capsys.readouterr()
    code, output, errors = command_line("predict", run, "--text", "a warm and funny film", "tracking=none")
    assert code == 0, errors
    shown = [float(part) for line in output.splitlines() for part in line.split() if part.startswith("0.")]
    assert sum(shown) == pytest.approx(1, abs=2e-4)
    target = tmp_path / "merged"
    code, _, errors = command_line("export", run, "format=merged", f"output={target}", "tracking=none")
    assert code == 0, errors
    assert "pipeline(" in (target / "README.md").read_text()


def test_an_encoder_is_evaluated_on_its_own_rows_and_by_the_names_of_labels(tuned, command_line, reviews, tmp_path):
    result = tuned("roberta")
    rows = [line.rpartition("\t") for line in (reviews / "test.tsv").read_text().splitlines()[1:]]
    named = [f"{text},{['Negative', 'POSITIVE'][int(label)]}" for text, _, label in rows]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *named]) + "\n")
    words = ["data=csv", f"data.path={tmp_path / 'mine.csv'}", "split=all", "data.labels=[POSITIVE,Negative]"]
    code, _, errors = command_line("evaluate", f"run={result.folder}", *words, *NOWHERE, f"output_dir={tmp_path}")
    assert code == 0, errors
    (file,) = tmp_path.glob("evaluation-*/evaluation.json")
    found = json.loads(file.read_text())["metrics"]
    for name in ("test/loss", "test/brier"):
        assert found[name] == pytest.approx(result.metrics[name], abs=rounding())


def test_an_mlflow_model_holds_an_encoder(tuned, texts, tmp_path):
    result = tuned("bert")
    finished_run = Finished(name="bert", trained=read_trained(result.weights))
    save_model(finished_run, tmp_path / "model")
    close(read_model(tmp_path / "model")(texts), said(result))
