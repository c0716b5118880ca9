"""`python -m sentexp serve`: a finished run behind MLflow's scoring server, on loopback unless told otherwise.

    curl 127.0.0.1:5001/invocations -H "Content-Type: application/json" -d '{"dataframe_records": [{"text": "..."}]}'

`/` is a page for people, `/health` and `/version` are MLflow's. Told to stop, it answers what it has begun.
"""

import asyncio
import logging
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import ServeConfig
from sentexp.errors import UserError
from sentexp.export.mlflow_model import save_model
from sentexp.export.pyfunc import quiet_pyfunc
from sentexp.inference.run_lookup import find_finished
from sentexp.serving.middleware import Guard
from sentexp.serving.page import page
from sentexp.system.console import say

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

THREADS = 64
"""Requests that wait for the model at one time; it answers them together."""
LAST_ANSWERS = 30
"""Seconds that a server which is told to stop has for the requests that it has begun."""


def serve(config: ServeConfig) -> None:
    """Answer requests until the process is interrupted or terminated.

    Raises:
        UserError: there is no such run, or the port is taken.
    """
    import uvicorn

    finished = find_finished(config.wanted, config.tracking, config.output_dir)
    listening = _listen(config.host, config.port)
    with tempfile.TemporaryDirectory() as place, listening:
        folder = Path(place) / "model"
        save_model(finished, folder, config.base)
        app = build_app(folder, config, finished.name)
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LAST_ANSWERS)
        server = uvicorn.Server(settings)
        host = f"[{config.host}]" if ":" in config.host else config.host
        say(f"run {finished.name} at http://{host}:{listening.getsockname()[1]} (stop with Ctrl-C)")
        try:
            asyncio.run(_run(server, listening))
        except BaseException:  # uvicorn raises the signal again that it was stopped with
            if not server.should_exit:
                raise
    say(f"stopped; requests that were begun had {LAST_ANSWERS} s for their answers")


def build_app(folder: Path, config: ServeConfig, name: str) -> "FastAPI":
    """Return MLflow's scoring server over a saved model, with a page at `/` and limits on what is asked.

    Args:
        folder: of the model; see `save_model`.
        config: its limits.
        name: of the run, for the page.
    """
    from fastapi.responses import HTMLResponse

    for logger in ("mlflow.pyfunc.scoring_server", "mlflow.models.utils"):  # they warn of each request's form
        logging.getLogger(logger).setLevel(logging.ERROR)
    with quiet_pyfunc() as pyfunc:
        keys = {"accelerator": config.accelerator, "max_tokens": config.max_tokens}
        model = pyfunc.load_model(str(folder), model_config=keys)
    own: Any = model.unwrap_python_model()
    own.most_rows = config.max_rows
    text, headers = page(name, own.scorer.labels)
    app: FastAPI = import_module("mlflow.pyfunc.scoring_server").init(model)
    app.add_middleware(Guard, most=config.max_bytes)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    return app


async def _run(server: "Server", listening: socket.socket) -> None:
    """Run a server in which more requests wait at one time than asyncio has threads for on a small machine."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "request"))
    await server.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections at once, so that nobody who was told of it is refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"host={host} port={port} cannot be listened at ({error.strerror}): host must be an address of this "
            "machine, and port one that is free; port=0 takes any."
        ) from None
    return listening
