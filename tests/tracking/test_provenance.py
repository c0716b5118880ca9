"""Provenance: commands that can be typed again, secrets that are not written down."""

import shlex
import sys

import pytest

from sentexp import __version__
from sentexp.tracking.provenance import command, git_state, library_versions, mask_uri


def test_the_command_can_be_typed_again(monkeypatch):
    words = ["peft.r=4,8", "task.template='{text} is'", "tracking.uri=http://me:secret@host:5000/x"]
    monkeypatch.setattr(sys, "argv", ["sentexp", *words])
    assert shlex.split(command()) == ["python", "-m", "sentexp", *words[:2], "tracking.uri=http://me:***@host:5000/x"]


@pytest.mark.parametrize("text", ["sqlite:///mlflow.db", "peft.r=8", "http://host:5000", "a@b", ""])
def test_texts_without_a_password_stay(text):
    assert mask_uri(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me:***@host/x"),
        ("uri=postgresql://me:se@cret@host/x?sslmode=require", "uri=postgresql://me:***@host/x?sslmode=require"),
        ("uri='mysql://me:sec%21ret@host/x'", "uri='mysql://me:***@host/x'"),
        ("http://:secret@host:5000", "http://:***@host:5000"),
        ("read http://[a@b", "read http://[a@b"),
    ],
)
def test_a_password_is_masked_wherever_it_is(text, masked):
    assert mask_uri(text) == masked


def test_git_state_names_commit_and_changes(tmp_path, monkeypatch):
    import subprocess

    monkeypatch.chdir(tmp_path)
    assert git_state() == {}
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert git_state()["git.dirty"] == "false"
    (tmp_path / "new").touch()
    state = git_state()
    assert state["git.dirty"] == "true"
    assert len(state["mlflow.source.git.commit"]) == 40


def test_versions_of_the_libraries_behind_a_result():
    versions = library_versions()
    assert versions["torch"].startswith("2.")
    assert versions["peft"] != "not installed"
    assert versions["sentexp"] == __version__, "not that of an earlier installation of the same folder"
