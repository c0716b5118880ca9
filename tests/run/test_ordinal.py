"""An ordinal head: it learns ratings, is saved, predicts and is exported as it was tested."""

import csv
from importlib.util import find_spec

import encoders
import numpy as np
import pytest
from finished_runs import base_words, checked_here, exported, finished, quick_words  # noqa: F401 (fixtures)

from sentexp.config import TrackingBackend, TrackingConfig, from_conf, load_config
from sentexp.errors import UserError
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import read_trained
from sentexp.run.train import train
from sentexp.tracking.identity import settings
from sentexp.tracking.predictions import file_name, read_predictions

ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")
NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)
TEXTS = ["cccc film 7", "eeee film 8", "aaaa"]


@pytest.fixture(scope="module")
def rated(tmp_path_factory, finished):  # noqa: F811
    """Return a function that trains an ordinal run on 250 reviews of 1 to 5 stars, once."""
    file = tmp_path_factory.mktemp("rated") / "stars.csv"
    with file.open("w", newline="") as stream:
        rows = [(f"{'abcde'[number % 5] * 4} film {number}", number % 5 + 1) for number in range(250)]
        csv.writer(stream).writerows([("text", "label"), *rows])
    own = ["data=csv", f"data.path={file}", "data.labels=null", "data.ordered=true", "task.loss=ordinal"]
    own += ["data.splits.validation=null", "data.splits.test=null", "data.validation_fraction=0.2"]
    return lambda *words: finished(*own, "data.test_fraction=0.2", "data.max_length=60", *words)


@pytest.mark.slow
def test_it_learns_the_order_and_predicts_what_was_tested(rated):
    result = rated("peft=lora", "trainer.max_epochs=6")
    said = read_predictions(result.folder / file_name("test"))
    assert result.metrics["test/mae"] < 0.5
    assert result.metrics["test/loss"] < 1.2 < np.log(5)
    rows = result.predictions()
    scorer = Scorer(read_trained(result.weights), None, "cpu")
    np.testing.assert_allclose(scorer.probabilities(rows["text"].tolist()), said.probabilities, atol=1e-5)
    assert any(said.probabilities.argmax(1) != said.probabilities[:, ::-1].argmax(1))


@pytest.mark.parametrize("form", ["peft", "merged", pytest.param("onnx", marks=(ONNX, pytest.mark.slow))])
@pytest.mark.parametrize("kind", ["decoder", "bert"])
def test_an_export_says_what_the_run_says(kind, form, rated, base_words, exported):  # noqa: F811
    folder, found, wanted = exported(rated("peft=lora", *base_words(kind)), form, TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    card = (folder / "README.md").read_text()
    assert ("softplus" in card) == (form != "onnx")
    assert ("import torch\n" in card) == (form != "onnx")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
def test_the_lines_of_a_card_give_the_probabilities(rated, monkeypatch):
    result = rated("peft=lora")
    monkeypatch.chdir(result.weights)
    code = (result.weights / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 10
    names = {}
    exec(code, names)
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(["a warm and funny film"])[0]
    np.testing.assert_allclose(names["probabilities"].detach().numpy(), wanted, atol=1e-4)


def test_what_makes_no_sense_is_reported(tmp_path):
    encoders.write_encoder(tmp_path, "bert", "AutoModelForSequenceClassification", num_labels=2)
    with pytest.raises(UserError, match=r"task.loss=ordinal learns classes in their order: set data.ordered=true"):
        load_config("task.loss=ordinal")
    with pytest.raises(UserError, match=r"task.head_init=label_words gives each class a row of the head"):
        load_config("task.loss=ordinal", "data.ordered=true", "task.head_init=label_words")
    words = ["task.loss=ordinal", "data.ordered=true", f"model.path={tmp_path}", "tracking=none"]
    with pytest.raises(UserError, match=r"task.loss=ordinal needs a head of its own.*give model.head=new"):
        train(load_config(*words, "model.labels=[negative,positive]", "data.max_length=60", f"output_dir={tmp_path}"))


def test_runs_of_earlier_releases_keep_their_identity():
    assert "task.loss" not in settings(load_config())
    assert settings(load_config("task=causal_lm"))["task.loss"] == "answer"
