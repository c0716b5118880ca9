"""Every model of conf/model, read from a folder in the hub's layout: small random weights of its architecture."""

import shutil
from dataclasses import replace
from pathlib import Path

import decoders
import encoders
import pytest
import torch
from safetensors.torch import load_file, save_file

from sentexp.cli.list_models import read_option
from sentexp.config import ModelConfig, PackageFile, PackageModel, conf_dir, from_conf, load_config
from sentexp.data.batch import pad
from sentexp.errors import UserError
from sentexp.models.encoder_classifier import classifier_over
from sentexp.models.encoders import ENCODERS
from sentexp.models.pretrained import locate_backbone
from sentexp.run.build import build_model
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.checksums import CHECKSUMS
from sentexp.system.package_files import sha256_of

ARCHITECTURES = {
    "bert_base": "bert",
    "deberta_v3_base": "deberta-v2",
    "deberta_v3_large": "deberta-v2",
    "finbert": "bert",
    "gemma3_1b": "gemma3_text",
    "gemma3_270m": "gemma3_text",
    "gpt2": "gpt2",
    "llama2_13b_chat": "llama",
    "llama2_7b": "llama",
    "llama3_1_8b": "llama",
    "llama3_2_1b": "llama",
    "mistral_7b": "mistral",
    "modernbert_base": "modernbert",
    "modernbert_large": "modernbert",
    "phi4_mini": "phi3",
    "qwen3_0_6b": "qwen3",
    "qwen3_1_7b": "qwen3",
    "qwen3_8b": "qwen3",
    "roberta_base": "roberta",
    "roberta_large": "roberta",
    "smollm2_360m": "llama",
    "smollm3_3b": "smollm3",
    "twitter_roberta_sentiment": "roberta",
    "xlm_roberta_base": "xlm-roberta",
}
EMBEDDED = {"minilm", "mpnet", "smollm2_135m", "tiny"}


def test_every_model_is_tried_here():
    assert ARCHITECTURES.keys() | EMBEDDED == {file.stem for file in (conf_dir() / "model").glob("*.yaml")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_is_loaded_adapted_and_scores(name, config, tmp_path):
    kind = ARCHITECTURES[name]
    about = read_option(conf_dir() / "model" / f"{name}.yaml").kind
    if about == "classifier":
        labels = {"id2label": {0: "Positive", 1: "Negative"}, "label2id": {"Positive": 0, "Negative": 1}}
        encoders.write_encoder(tmp_path, kind, "AutoModelForSequenceClassification", **labels)
    elif about == "encoder":
        encoders.write_encoder(tmp_path, kind)
    else:
        decoders.write_decoder(tmp_path, kind)
    assert (kind in ENCODERS) == (about != "decoder")
    inputs = prepare_inputs(resolve_inputs(config(f"model={name}", f"model.path={tmp_path}")), show=False)
    assert inputs.head_rows == ([1, 0] if about == "classifier" else None)
    model, audit = build_model(inputs)
    assert audit.trainable["adapter"] > 0
    logits = classifier_over(model).train(False)(pad([[2, 9, 10, 3], [2, 3]], 0, "right")).logits
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return what names an installed package that holds an encoder, and the folder of the encoder."""
    folder = tmp_path / "site" / "small_encoder" / "model"
    encoders.write_encoder(folder, "bert")
    metadata = tmp_path / "site" / "small_encoder-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: small-encoder\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    beside = {name: sha256_of(folder / name) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    digest = sha256_of(folder / "model.safetensors")
    file = "small_encoder/model/model.safetensors"
    return PackageModel(distribution="small-encoder", file=file, sha256=digest, beside=beside, pieces={}), folder


def test_safetensors_in_a_package_are_read_where_they_are(package):
    named, folder = package
    backbone = locate_backbone(from_conf(ModelConfig, name="small", package=named))
    assert (backbone.folder, backbone.revision) == (folder, named.sha256)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_file_of_a_package_that_was_changed_is_refused(name, package):
    named, folder = package
    if name.endswith("safetensors"):
        save_file({key: value + 1 for key, value in load_file(folder / name).items()}, folder / name)
    else:
        (folder / name).write_text((folder / name).read_text() + " ")
    with pytest.raises(UserError, match=f"{name} has the SHA-256 .* so it is not trusted"):
        locate_backbone(from_conf(ModelConfig, name="small", package=named))


@pytest.mark.parametrize("name", ["minilm", "mpnet"])
def test_an_encoder_in_packages_names_every_file_that_is_read(name):
    named = load_config(f"model={name}").model.package
    assert named.file.endswith("model.safetensors")
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= named.beside.keys()


def test_safetensors_in_an_archive_of_pieces_are_unpacked_once(package, tmp_path, monkeypatch):
    named, folder = package
    archive = Path(shutil.make_archive(str(tmp_path / "site" / "small"), "zip", folder.parent, folder.name))
    piece = PackageFile(distribution=named.distribution, file=archive.name, sha256=sha256_of(archive))
    held = replace(named, file="model/model.safetensors", pieces={"001": piece})
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path / "cache"))
    backbone = locate_backbone(from_conf(ModelConfig, name="small", package=held))
    assert backbone.revision == named.sha256
    assert {file.name for file in backbone.folder.iterdir()} == {"model.safetensors", CHECKSUMS, *named.beside}
    archive.unlink()
    assert locate_backbone(from_conf(ModelConfig, name="small", package=held)).folder == backbone.folder


def test_the_requirements_are_the_packages_of_the_option():
    text = (Path(__file__).parents[2] / "requirements-embedded.txt").read_text()
    lines = [line for line in text.splitlines() if line.startswith("all-mpnet")]
    pieces = load_config("model=mpnet").model.package.pieces
    assert [line.partition("==")[0] for line in lines] == [pieces[name].distribution for name in sorted(pieces)]
    assert all("--hash=sha256:" in line for line in lines)
