"""`python -m sentexp ui`: MLflow's UI over the store of the runs, from any folder, on this machine alone."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.error import URLError

from sentexp.config import UiConfig
from sentexp.errors import UserError, require
from sentexp.system.console import say, waiting
from sentexp.tracking.client import SQLITE
from sentexp.tracking.provenance import mask_uri
from sentexp.tracking.store import find_store, store_uri
from sentexp.tracking.ui_view import experiment_view

HOST = "127.0.0.1"
LOOK_EVERY = 0.1
"""Seconds between two looks whether the server answers."""
LAST_ANSWERS = 10
"""Seconds that a server has to stop."""


def ui(config: UiConfig) -> None:
    """Serve MLflow's UI until the process is interrupted or terminated; a store behind a server has one already.

    Raises:
        UserError: there is no such store, the port is taken, or MLflow's server ends.
    """
    uri = store_uri(config.tracking)
    if uri.startswith(("http://", "https://")):
        say(f"MLflow UI: {mask_uri(uri)} (this store is a server, which shows it)", mask_uri(uri))
        return
    require(
        not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE).partition("?")[0]).is_file(),
        f"There is no MLflow store at {mask_uri(uri)}: go to the folder of your runs, or name it with "
        "tracking.uri=sqlite:////<path>/mlflow.db.",
    )
    address, page = f"http://{HOST}:{_free_port(config.port)}", _page(config)
    words = ["--host", HOST, "--port", address.rpartition(":")[2], "--workers", "1"]
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    store = {"MLFLOW_BACKEND_STORE_URI": uri}  # it may hold a password, and all see the words of a process
    server = subprocess.Popen(  # noqa: S603 (this Python, and words of ours)
        [sys.executable, "-m", "mlflow", "server", *words, "--uvicorn-opts", "--log-level warning"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **quiet, **store},
    )
    try:
        with waiting("Starting MLflow's server"):
            _wait_until_it_answers(server, address)
        say(f"MLflow UI over {mask_uri(uri)} at {address}{page} (stop with Ctrl-C)", address + page)
        server.wait()
    except KeyboardInterrupt:
        say("stopped")
        return
    finally:
        _stop(server)
    raise UserError(f"MLflow's server has ended with exit code {server.returncode}: it says why above.")


def _page(config: UiConfig) -> str:
    """Return the page to open: the runs of the experiment; the first one where there is no such experiment."""
    with waiting("Reading the runs"):
        try:
            store = find_store(config.tracking)
            return "" if store is None else experiment_view(store)
        except UserError:  # MLflow's server says what is wrong with it
            return ""


def _free_port(port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        UserError: it is taken.
    """
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port={port} cannot be listened at ({error.strerror}): perhaps the UI is open there already, at "
                f"http://{HOST}:{port}; port=0 takes any that is free."
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", address: str) -> None:
    """Return once the server answers, or has ended."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):  # noqa: S310 (an address of ours)
                return
        except (URLError, OSError):
            time.sleep(LOOK_EVERY)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server, whatever has ended the wait for it."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(LAST_ANSWERS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
