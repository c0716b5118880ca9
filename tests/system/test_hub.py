"""Local paths and hub ids are told apart; what the hub refuses becomes a sentence."""

import httpx2 as httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from sentexp.errors import UserError
from sentexp.system.hub import is_local, snapshot


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("stanfordnlp/sst2", False),
        ("gpt2", False),
        ("./x", True),
        ("../shared/data/sst2", True),
        ("/tmp/x", True),
        ("~/models/x", True),
        ("a/b/c", True),
        ("reviews.csv", True),
        ("model.gguf", True),
    ],
)
def test_paths_and_hub_ids(path, local):
    assert is_local(path) is local


def test_an_existing_folder_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert is_local("owner/name")


def answer(kind, status):
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    return kind("what the hub said", response=response)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            lambda: answer(errors.GatedRepoError, 403),
            r"model.path=meta/llama is gated: request access at https://huggingface.co/meta/llama",
        ),
        (
            lambda: answer(errors.RepositoryNotFoundError, 404),
            r"neither a local path nor a model that the hub shows you",
        ),
        (lambda: answer(errors.RevisionNotFoundError, 404), r"has no revision v9"),
        (lambda: answer(errors.HfHubHTTPError, 503), r"cannot be reached from here .*model.path=<folder>"),
        (lambda: errors.LocalEntryNotFoundError("x"), r"cannot be reached from here"),
        (lambda: ConnectionError("x"), r"cannot be reached from here"),
    ],
)
def test_what_the_hub_refuses_becomes_a_sentence(error, sentence, monkeypatch):
    def refuse(*_, **__):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=sentence):
        snapshot("model.path", "meta/llama", "v9", "model")
