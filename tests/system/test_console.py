"""What is shown on a terminal while nothing is printed, and nowhere else."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from sentexp.system import console
from sentexp.system.console import hint, waiting


@pytest.fixture
def terminal(monkeypatch):
    """Return what is written to a terminal."""
    written = io.StringIO()
    monkeypatch.setattr(console, "ASIDE", Console(file=written, force_terminal=True, width=80))
    return written


def test_a_spinner_has_words_and_leaves_nothing(terminal, capsys):
    with waiting("Looking for the run"), waiting("something within it"):
        print("a row")
    shown = terminal.getvalue()
    assert "Looking for the run ..." in shown
    assert "within" not in shown
    assert shown.endswith("\x1b[2K"), "the line is not erased"
    assert capsys.readouterr().out == "a row\n", "what is printed stays on standard output"


def test_after_a_failure_there_is_another_spinner(terminal):
    with pytest.raises(KeyError), waiting("the first"):
        raise KeyError
    with waiting("the second"):
        pass
    assert "the second ..." in terminal.getvalue()


def test_a_hint_is_a_line(terminal):
    hint("Reading the data")
    assert "Reading the data ..." in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_other_processes_of_a_run_are_silent(terminal, monkeypatch):
    monkeypatch.setattr(console.OUT, "quiet", True)
    hint("Reading the data")
    with waiting("Looking"):
        pass
    assert terminal.getvalue() == ""


def test_a_log_holds_none_of_it(capsys):
    hint("Reading the data")
    with waiting("Looking"):
        pass
    assert capsys.readouterr() == ("", "")


def test_words_come_before_anything_heavy_is_imported(tmp_path, command_environment):
    """A command whose modules cannot be imported has said that it starts."""
    code = "import sys; sys.modules['sentexp.inference.predict'] = None; sys.argv[1:] = ['predict', '--text', 'x']"
    mine, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom sentexp.cli.main import main; main()"],
        cwd=tmp_path, env=command_environment, stdout=subprocess.DEVNULL, stderr=theirs, check=False,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(mine, 4096):
            shown += part
    except OSError:  # the end of a terminal
        pass
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "Starting predict ..." in text
