"""Runs that read pairs, exported: their probabilities from plain libraries, in the lines of the cards."""

from importlib.util import find_spec

import encoders
import numpy as np
import pytest
from transformers import AutoTokenizer

from sentexp.config import ExportConfig, ExportFormat, TrackingBackend, TrackingConfig, from_conf
from sentexp.data.text_parts import PAIR
from sentexp.export.command import export
from sentexp.export.exporters import as_given, read
from sentexp.export.mlflow_model import read_model, save_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import read_trained
from sentexp.tracking.predictions import file_name, read_predictions

NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)
ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")
PAIRS = [
    f"day 7 was warm{PAIR}sun",
    f"day 7 was warm{PAIR}ice",
    f"cold days{PAIR}the cast of the film",
    f"x{PAIR}a warm and funny one",
]
DECODER, ENCODER = ("peft=lora",), ("peft=head", "optim.lr=1e-1", "data.max_length=60")
ANSWERS = ("task=causal_lm", "peft=lora", "task.label_words=[b,g]")


@pytest.fixture(scope="module")
def encoder(paired, tmp_path_factory):
    """Return a function from a kind of encoder to a run that reads pairs with it."""

    def trained_run(kind):
        folder = tmp_path_factory.mktemp(kind)
        encoders.write_encoder(folder, kind)
        return paired(f"model.path={folder}", *ENCODER)

    return trained_run


@pytest.fixture
def exported(tmp_path):
    """Return a function that exports a run, and returns its folder."""

    def write(result, form):
        place = {"run": str(result.folder), "output": str(tmp_path / "export"), "accelerator": "cpu"}
        return export(from_conf(ExportConfig, tracking=NONE, format=ExportFormat[form], **place))

    return write


def check(result, folder, form, pairs=PAIRS):
    """Check that an export says of pairs what the run says."""
    trained = read_trained(result.weights)
    wanted = Scorer(trained, None, "cpu").probabilities(pairs)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-4, "the second text is not read"
    given = as_given(ExportFormat[form], trained, pairs)
    np.testing.assert_allclose(read(ExportFormat[form], folder, None)(given), wanted, atol=1e-4)


@pytest.mark.parametrize("form", ["peft", "merged", pytest.param("onnx", marks=(ONNX, pytest.mark.slow))])
@pytest.mark.parametrize("words", [DECODER, ANSWERS], ids=["seq_cls", "causal_lm"])
def test_decoders_say_what_the_run_says(words, form, paired, exported):
    result = paired(*words)
    folder = exported(result, form)
    check(result, folder, form)
    card = (folder / "README.md").read_text()
    if form == "onnx" or (form, words) == ("merged", DECODER):
        assert "film\\nAspect: the cast" in card
        assert "A pair is one text here" in card


@pytest.mark.parametrize("form", ["merged", pytest.param("onnx", marks=(ONNX, pytest.mark.slow))])
@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_encoders_divide_pairs_themselves(kind, form, encoder, exported):
    result = encoder(kind)
    folder = exported(result, form)
    check(result, folder, form)
    long = ["a warm and funny film " * 200 + PAIR + "the cast"]
    check(result, folder, form, [*PAIRS, *long])
    card = (folder / "README.md").read_text()
    assert "only_first" in card
    assert "A pair is one text" not in card


def test_segments_are_given_to_those_that_know_them(encoder, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported(encoder("bert"), "merged"))
    rows = tokenizer("a film", "the cast")
    assert rows["token_type_ids"][0] == 0
    assert rows["token_type_ids"][-1] == 1
    assert sorted(rows["token_type_ids"]) == rows["token_type_ids"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
@pytest.mark.parametrize("kind", ["bert", "roberta", "decoder", "answers"])
def test_the_lines_of_a_card_give_the_probabilities_of_a_pair(kind, encoder, paired, monkeypatch):
    words = {"decoder": DECODER, "answers": ANSWERS}
    result = paired(*words[kind]) if kind in words else encoder(kind)
    monkeypatch.chdir(result.weights)
    code = (result.weights / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    scorer = Scorer(read_trained(result.weights), None, "cpu")
    wanted = scorer.probabilities([f"a warm and funny film{PAIR}the cast"])[0]
    np.testing.assert_allclose(names["probabilities"].detach().numpy(), wanted, atol=1e-4)


def test_an_mlflow_model_reads_two_columns(paired, tmp_path):
    result = paired(*DECODER)
    finished = resolve_run(str(result.folder), NONE, "outputs")
    save_model(finished, tmp_path / "model")
    said = read_predictions(result.folder / file_name("test"))
    reader = read_model(tmp_path / "model")
    rows = Scorer(finished.trained, None, "cpu").probabilities(PAIRS)
    np.testing.assert_allclose(reader(PAIRS), rows, atol=1e-5)
    assert said.labels == ["bad", "good"]
    facts = (tmp_path / "model" / "MLmodel").read_text()
    assert '"name": "text_pair"' in facts
