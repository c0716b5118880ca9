"""The table of training methods is true: each option is run, and what happens is its row."""

from importlib.util import find_spec

import encoders
import pytest
import torch
from methods import SMALL
from rounding import rounding
from tiers import exhaustive_but

from sentexp.config import ExportFormat, ExportType, conf_dir
from sentexp.errors import UserError
from sentexp.export.exporters import read, write
from sentexp.inference.scorer import Scorer
from sentexp.models.adapters import HARMLESS
from sentexp.models.merge import merge
from sentexp.models.method_table import COLUMNS, MethodFacts, facts_of
from sentexp.models.saved import find_base, read_trained
from sentexp.run.build import build_model
from sentexp.run.fusing import fuse
from sentexp.run.inputs import build_packer, prepare_inputs, resolve_inputs
from sentexp.run.train import train

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in (*HARMLESS, "Sparse invariant checks")]
OPTIONS = sorted(file.stem for file in (conf_dir() / "peft").glob("*.yaml") if file.stem != "other")
SMALL = {"adalora": ["trainer.max_epochs=2"], **SMALL}


@pytest.fixture
def run(config, tmp_path):
    """Return a function from overrides to a finished run, and its weights as they are read."""

    def finish(*words):
        result = train(config(*words, "baseline=false", f"output_dir={tmp_path / 'runs'}"))
        return result, read_trained(result.weights)

    return finish


@pytest.fixture
def encoder(tmp_path):
    encoders.write_encoder(tmp_path / "bert", "bert")
    return [f"model.path={tmp_path / 'bert'}", "task.template=auto"]


def happens(function):
    """Return whether a function is not refused in a sentence."""
    try:
        function()
    except UserError:
        return False
    return True


def is_merged(trained, folder):
    """Return whether a run can be one model; then its graph has the same probabilities."""
    texts = ["a warm and funny film", "dull"]
    if not happens(lambda: merge(trained, find_base(trained))):
        return False
    folder.mkdir()
    write(ExportFormat.onnx, trained, find_base(trained), ExportType.float32, folder)
    found = torch.tensor(read(ExportFormat.onnx, folder, None)(texts))
    torch.testing.assert_close(
        found, torch.tensor(Scorer(trained).probabilities(texts)), rtol=0, atol=rounding(sums=512)
    )
    return True


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("torchao", "hqq"))), reason="needs the extras torchao and hqq")
@pytest.mark.parametrize("name", exhaustive_but(OPTIONS, "lora", "ia3", "prompt_tuning"))
def test_a_row_is_what_happens(name, config, run, encoder, tmp_path):
    words = [f"peft={name}", *SMALL.get(name, []), *(encoder if name == "bitfit" else [])]  # a Llama has no biases
    inputs = prepare_inputs(resolve_inputs(config(*words)))
    grid = fuse([config(*words, f"seed={seed}", "sweep.name=x") for seed in (1, 2)])
    shares = any("compute the features of each text once" in reason for reason in grid.reasons.values())

    def trains_over(storage):
        given = [*words, f"peft.quantization={storage}"]
        return happens(lambda: build_model(prepare_inputs(resolve_inputs(config(*given)))))

    def over_an_encoder():
        result, trained = run(*words, *encoder)
        texts = inputs.examples.test["text"].to_pylist()
        assert result.weights is not None
        assert Scorer(trained).probabilities(texts).shape == (8, 2)

    trained = run(*words)[1]
    happened = MethodFacts(
        option=name,
        padding_free=build_packer(inputs) is not None,
        together=bool(grid.groups) or shares,
        four_bit=trains_over("nf4"),
        torchao=trains_over("int8_weight_only") and trains_over("float8_weight_only"),
        hqq=trains_over("hqq4"),
        merged=is_merged(trained, tmp_path / "onnx"),
        encoders=happens(over_an_encoder),
    )
    assert facts_of(name) == happened


def test_every_option_has_a_row():
    assert {facts_of(name).option for name in OPTIONS} == set(OPTIONS)
    assert all(len(facts_of(name).cells) == len(COLUMNS) for name in OPTIONS)
