"""What is proposed works as it stands: the right Python, the store, values that hydra reads; links on terminals."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from sentexp.config import TrackingBackend, TrackingConfig, from_conf
from sentexp.system import console
from sentexp.tracking import next_steps
from sentexp.tracking.next_steps import override, place_words, say_next, say_recorded, sentexp_command
from sentexp.tracking.store import open_store

USUAL = from_conf(TrackingConfig)
MAKEFILE = Path(__file__).parents[2] / "Makefile"


def environment_at(folder, monkeypatch):
    """Let this process be that of a virtual environment in a folder."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    return python


def test_python_is_named_as_the_current_folder_finds_it(tmp_path, monkeypatch):
    python = environment_at(tmp_path / "clone" / ".venv", monkeypatch)
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setenv("PATH", "/usr/bin")
    assert sentexp_command("compare") == ".venv/bin/python -m sentexp compare"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert sentexp_command("compare") == f"{python} -m sentexp compare"
    monkeypatch.setenv("PATH", f"{python.parent}:/usr/bin")
    assert sentexp_command("predict", "--text", "a b") == "python -m sentexp predict --text 'a b'"


@pytest.mark.parametrize(
    "word", ["a b", "data.text='{title}. {body}'", "it's $HOME", "'`id`'", 'say "it\'s"', "a\\'b", "'!'"]
)
def test_a_shell_takes_the_words_of_a_command_as_they_are(word):
    command = sentexp_command("audit", word)
    assert shlex.split(command)[-1] == word
    said = subprocess.run(
        ["bash", "-c", command.replace(command.split(" -m ")[0] + " -m sentexp audit", "printf %s", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == word


def test_quotes_are_not_escaped_one_by_one():
    assert sentexp_command("audit", "data.text='{a} {b}'").endswith(""" audit "data.text='{a} {b}'\"""")


def test_a_password_is_never_proposed():
    assert "secret" not in sentexp_command("ui", "tracking.uri=postgresql://me:secret@host/runs")


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "a b",
        "it's",
        "1e5",
        "null",
        "sqlite:////x/mlflow.db",
        "a=b",
        "a,b",
        "~/x",
        "12",
        r"a\b",
        r"a\'b",
        "a\\",
    ],
)
def test_a_value_is_quoted_where_hydra_would_read_more_than_a_text(value):
    (word,) = shlex.split(shlex.join([override("name", value)]))
    assert OverridesParser.create().parse_override(word).value() == value


def test_the_place_is_named_where_it_is_not_the_usual_one():
    assert place_words(USUAL, "elsewhere") == []
    mine = replace(USUAL, uri="sqlite:////x/mlflow.db", experiment="films")
    assert place_words(mine, "elsewhere") == ["tracking.uri=sqlite:////x/mlflow.db", "tracking.experiment=films"]
    none = replace(USUAL, backend=TrackingBackend.none)
    assert place_words(none) == ["tracking=none"]
    assert place_words(none, "elsewhere") == ["tracking=none", "output_dir=elsewhere"]


def test_make_is_proposed_only_where_the_makefile_is_this_projects(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    experiment = open_store(USUAL).experiment

    def said(tracking=USUAL):
        say_recorded("abc", tracking)
        return capsys.readouterr().out

    address = f"MLflow UI: http://127.0.0.1:5000/#/experiments/{experiment}/runs/abc once `"
    assert f"MLflow run abc in {store}\n{address}" in said()
    assert f"{sentexp_command('ui')}` runs" in said()
    (tmp_path / "Makefile").write_text("ui:\n\techo another\n")
    assert "make ui" not in said()
    shutil.copy(MAKEFILE, tmp_path)
    assert f"{address}make ui` runs" in said()
    assert "make ui" not in said(replace(USUAL, uri=store))
    assert said(replace(USUAL, backend=TrackingBackend.none)) == "recorded nowhere (tracking=none)\n"


def test_a_server_has_the_ui_itself(monkeypatch, capsys):
    monkeypatch.setattr(next_steps, "open_store", lambda _: type("Store", (), {"experiment": "7"}))
    next_steps.say_ui(replace(USUAL, uri="https://me:secret@host/"), "abc")
    assert capsys.readouterr().out == "MLflow UI: https://me:***@host/#/experiments/7/runs/abc\n"


def test_nothing_next_is_not_announced(capsys):
    say_next([])
    assert capsys.readouterr().out == ""
    say_next(["one"])
    assert capsys.readouterr().out == "\nNext, for instance:\n  one\n"


def test_files_and_addresses_are_links_on_a_terminal_and_plain_elsewhere(monkeypatch):
    def printed(**kind):
        screen = StringIO()
        monkeypatch.setattr(console, "OUT", Console(file=screen, soft_wrap=True, highlight=False, **kind))
        console.say("Report: some/report.html, at http://host", Path("some/report.html"), "http://host")
        return screen.getvalue()

    shown = printed(force_terminal=True, color_system="standard")
    assert f"{Path('some/report.html').absolute().as_uri()}\x1b\\some/report.html" in shown
    assert "http://host\x1b\\http://host" in shown
    assert printed(force_terminal=False) == "Report: some/report.html, at http://host\n"
