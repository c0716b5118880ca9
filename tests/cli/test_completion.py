"""Completion in a shell: commands, keys of commands, options of groups, and the runs that are there."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest


@pytest.fixture
def complete(command_line, monkeypatch, capsys, tmp_path):
    """Return a function from a line that is typed to what may follow; two finished runs are there, and two others."""
    for number, (name, *files) in enumerate(
        [("a" * 16, "result.json"), ("ab" * 8, "result.json"), ("c" * 16, "result.json", "state.json"), ("b" * 16,)]
    ):
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
            os.utime(folder / file, (number, number))

    def query(line):
        from sentexp.cli.main import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["sentexp", "-sc", "query=bash"])
        with suppress(SystemExit):
            main()
        return capsys.readouterr().out.split()

    return query


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("sentexp pre", ["prepare", "predict"]),
        ("sentexp predict run=", ["run=latest", "run=best", "run=" + "ab" * 8, "run=" + "a" * 16]),
        ("sentexp export format=peft run=ab", ["run=" + "ab" * 8]),
        ("sentexp serve run=ab output_dir=outputs run=l", ["run=latest"]),
        ("sentexp serve output_dir=elsewhere run=a", []),
        ("sentexp predict calib", ["calibrated="]),
        ("sentexp peft=q", ["peft=qlora"]),
        ("sentexp peft=qlora peft.double", ["peft.double_quant="]),
        ("sentexp plan task=c", ["task=causal_lm"]),
        ("sentexp  compare  metr", ["metric="]),
    ],
)
def test_a_line_is_completed(complete, line, choices):
    assert complete(line) == choices


def test_all_commands_are_offered(complete):
    assert {"train", "predict", "push", "ui", "peft="} <= set(complete("sentexp "))


@pytest.mark.slow
def test_bash_completes_after_the_documented_line(tmp_path, command_environment):
    """With the program that an installation has."""
    program = tmp_path / "bin" / "sentexp"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom sentexp.cli.main import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "outputs" / ("a" * 16)).mkdir(parents=True)
    (tmp_path / "outputs" / ("a" * 16) / "result.json").touch()
    script = """
eval "$(sentexp -sc install=bash)"
COMP_LINE='sentexp predict run=a'; COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE); COMP_CWORD=2
hydra_bash_completion
echo "${COMPREPLY[@]}"
complete -p sentexp
"""
    path = f"{program.parent}{os.pathsep}{command_environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path, env=command_environment | {"PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    completed, registered = done.stdout.splitlines()
    assert completed == "run=" + "a" * 16
    assert registered.endswith("-F hydra_bash_completion sentexp")
