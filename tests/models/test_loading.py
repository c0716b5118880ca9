"""Backbones: sources become folders, once; random or missing weights are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sentexp.config import Attention, HeadOnly, ModelConfig, PackageModel, Precision, from_conf, load_config
from sentexp.errors import UserError
from sentexp.models import pretrained
from sentexp.models.architecture import read_config, require_own_tokenizer
from sentexp.models.loading import Loading, load_classifier, load_tokenizer
from sentexp.models.pretrained import Backbone, locate_backbone
from sentexp.models.structure import head_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return locate_backbone(load_config("model=tiny").model)


def classifier(backbone):
    tokenizer = load_tokenizer(backbone)
    storage = from_conf(HeadOnly, usual_lr=1.0)
    load = Loading(storage=storage, attention=Attention.auto, precision=Precision.fp32, device=CPU)
    return load_classifier(backbone, tokenizer, ["negative", "positive"], load)


def local(path):
    return locate_backbone(from_conf(ModelConfig, name="mine", path=str(path)))


def test_a_random_model_is_the_same_every_time(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    torch.manual_seed(99)
    again = locate_backbone(load_config("model=tiny").model)
    assert again.revision == tiny.revision
    assert again.folder != tiny.folder
    weights, other = load_file(tiny.folder / "model.safetensors"), load_file(again.folder / "model.safetensors")
    assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_a_model_whose_bytes_have_changed_is_made_again(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    file = locate_backbone(load_config("model=tiny").model).folder / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    monkeypatch.setattr(pretrained, "_unchanged", set())  # as in another process
    locate_backbone(load_config("model=tiny").model)
    assert file.read_bytes() == whole
    captured = capsys.readouterr()
    assert f"{file.parent} is damaged, or of an earlier release: it is made again.\n" in captured.err
    assert captured.out == ""  # which may hold the rows of a prediction


def test_a_model_that_is_whole_is_not_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    folder = locate_backbone(load_config("model=tiny").model).folder
    before = folder.stat().st_ino
    monkeypatch.setattr(pretrained, "_unchanged", set())
    assert locate_backbone(load_config("model=tiny").model).folder.stat().st_ino == before
    assert "made again" not in capsys.readouterr().err


def test_a_model_is_made_again_when_its_folder_is_deleted_while_a_process_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    shutil.rmtree(locate_backbone(load_config("model=tiny").model).folder)
    assert (locate_backbone(load_config("model=tiny").model).folder / "model.safetensors").is_file()


def test_a_half_built_folder_never_appears(tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    broken = tmp_path / "x.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match=r"x.gguf is not a GGUF file that transformers can convert"):
        local(broken)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] in ([], [".lock"])


def test_missing_weights_are_refused_instead_of_random(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .* model.layers.1.mlp.up_proj.weight"):
        classifier(local(folder))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pickled .bin weights are never loaded"):
        local(tmp_path)


def test_a_link_to_a_device_is_not_read_as_gguf(tmp_path):
    (tmp_path / "x.gguf").symlink_to("/dev/null")  # /dev/zero would have no end
    with pytest.raises(UserError, match=r"x.gguf must be a folder with config.json .*, a GGUF file"):
        local(tmp_path / "x.gguf")


def test_a_missing_path_and_an_offline_hub_say_what_to_pass():
    with pytest.raises(UserError, match=r"model.path=./nowhere does not exist"):
        local("./nowhere")
    with pytest.raises(UserError, match=r"Llama-2-7b-hf .* model.path=<folder>.*huggingface.co/meta-llama"):
        locate_backbone(load_config("model=llama2_7b").model)


def test_a_wrong_digest_is_refused():
    plain = {"sha256": "0" * 64, "beside": {}, "pieces": {}}
    package = PackageModel(distribution="numpy", file="numpy/__init__.py", **plain)
    with pytest.raises(UserError, match=r"has the SHA-256 [0-9a-f]{64}, not 0000.* reinstall it with"):
        locate_backbone(from_conf(ModelConfig, name="x", package=package))
    with pytest.raises(UserError, match="The package nonesuch is not installed"):
        locate_backbone(
            from_conf(ModelConfig, name="x", package=PackageModel(distribution="nonesuch", file="x", **plain))
        )


def test_the_revision_changes_with_the_weights(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.folder, folder)
    before = local(folder).revision
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert local(folder).revision != before


def test_the_head_is_float32_and_has_a_row_per_label(tiny):
    head = head_of(classifier(tiny))
    assert head.weight.shape == (2, 64)
    assert head.weight.dtype == torch.float32


def test_a_tokenizer_without_pad_token_gets_one(llama):
    tokenizer = load_tokenizer(local(llama))
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token == "</s>"


def test_a_tokenizer_without_any_special_token_is_padded(tiny, vocabulary, tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    bare = vocabulary("gpt2")
    end = bare.convert_tokens_to_ids("<|endoftext|>")
    bare.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    shutil.copy(tiny.folder / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": end}))
    tokenizer = load_tokenizer(local(folder))
    assert tokenizer.pad_token_id == end


def test_a_folder_without_tokenizer_is_named(tiny, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny.folder / name, tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(local(tmp_path))


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers=1000000000, which is not the size of a model: it must be from 1",
        ),
        ({"hidden_size": -64}, "hidden_size=-64, which is not"),
        ({"vocab_size": "many"}, "vocab_size='many', which is not"),
        ({"text_config": {"vocab_size": 10**12}}, "vocab_size=1000000000000, which is not"),
        ([1], "config.json must hold a JSON object"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_they_are_allocated(facts, sentence, tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts if isinstance(facts, dict) else facts))
    with pytest.raises(UserError, match=sentence):
        read_config(Backbone(folder=folder, revision=""))


def test_a_tokenizer_that_cannot_be_read_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=r"holds no tokenizer that transformers can read"):
        load_tokenizer(Backbone(folder=folder, revision=""))


def test_a_tokenizer_of_another_model_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "other")
    facts = json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(local(folder))
    require_own_tokenizer(local(folder), tokenizer)
    (folder / "config.json").write_text(json.dumps(facts | {"vocab_size": tokenizer.vocab_size - 1}))
    with pytest.raises(UserError, match=rf"a tokenizer of {tokenizer.vocab_size} tokens and a model of"):
        require_own_tokenizer(local(folder), tokenizer)
