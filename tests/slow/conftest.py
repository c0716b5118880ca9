"""What slow tests share: servers in processes of their own."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that returns a port of the loopback on which nothing listens."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture
def serve(command_environment: dict[str, str]) -> Iterator[Callable[..., None]]:
    """Return a function that starts a server in a folder and waits until its output holds a text that says so."""
    servers = []

    def begin(words: list[str], folder: Path, ready: str) -> None:
        output = folder / "server.txt"
        with output.open("w") as out:
            server = subprocess.Popen(words, cwd=folder, env=command_environment, stdout=out, stderr=out)
        servers.append(server)
        while ready not in output.read_text():
            assert server.poll() is None, output.read_text()
            time.sleep(0.1)

    yield begin
    for server in servers:
        server.terminate()
        server.wait()


@pytest.fixture
def mlflow_server(
    serve: Callable[..., None], command_environment: dict[str, str], free_port: Callable[[], int]
) -> Callable[[Path], str]:
    """Return a function that serves the MLflow store of a folder, with its UI, and returns the address."""

    def begin(folder: Path) -> str:
        command_environment.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        port = free_port()
        words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
        words += ["--artifacts-destination", "mlartifacts", "--host", "127.0.0.1", "--port", str(port)]
        serve(words, folder, "Application startup complete")
        return f"http://127.0.0.1:{port}"

    return begin
