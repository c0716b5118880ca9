"""MLflow's UI over the store of the runs: on this machine alone, from any folder, until it is stopped."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest


@pytest.fixture
def sentexp(command_line):
    return lambda *words: command_line("ui", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["tracking.uri=sqlite:///nowhere/mlflow.db"],
            "There is no MLflow store at sqlite:///nowhere/mlflow.db: go to",
        ),
        (["tracking=none"], "ui shows what MLflow holds, so tracking=none has nothing to show: leave it out."),
        (["port=70000"], "port=70000 must be at least 0 and at most 65535 (0 is any that is free)."),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(sentexp, tmp_path, words, said):
    code, _, errors = sentexp(*words)
    assert code == 1
    assert errors.startswith(f"sentexp: {said}")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_reported(sentexp, store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = sentexp(f"tracking.uri={store}", f"port={port}")
    assert code == 1
    assert f"port={port} cannot be listened at (Address already in use): perhaps the UI is open there already" in errors


def test_a_server_is_named(sentexp):
    code, output, errors = sentexp("tracking.uri=https://me:secret@mlflow.example.org")
    assert code == 0, errors
    assert output == "MLflow UI: https://me:***@mlflow.example.org (this store is a server, which shows it)\n"


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 130)])
def test_the_ui_answers_on_this_machine_until_it_is_stopped(number, code, store, tmp_path, command_environment):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "sentexp", "ui", f"tracking.uri={store}", "port=0"],
        cwd=elsewhere, env=command_environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        line = process.stdout.readline()
        assert line.startswith(f"MLflow UI over {store} at http://127.0.0.1:")
        address = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(address) as page:
            assert b"<title>MLflow</title>" in page.read()
        process.send_signal(number)
        assert process.wait(60) == code
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        for _ in range(100):
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                break
            time.sleep(0.05)
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server has outlived the command"
    assert list(elsewhere.iterdir()) == []
