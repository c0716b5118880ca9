"""`python -m sentexp serve`: a finished run behind a server in MLflow's protocol, on loopback by default.

    curl 127.0.0.1:5001/invocations -H "Content-Type: application/json" -d '{"dataframe_records": [{"text": "..."}]}'

`/` is a page for people; `/ping`, `/health` and `/version` are as MLflow has them. A server that is asked to stop
answers what it has begun.
"""

import asyncio
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import ServeConfig, TargetKind
from sentexp.errors import UserError
from sentexp.export.mlflow_model import save_model
from sentexp.export.pyfunc import CALIBRATED, quiet_pyfunc
from sentexp.inference.run_lookup import chosen_run
from sentexp.serving.invocations import Refused, read_body, read_request, refusal
from sentexp.serving.page import page
from sentexp.serving.request_timeout import with_request_timeout
from sentexp.system.console import say

if TYPE_CHECKING:
    from fastapi import FastAPI, Response
    from uvicorn import Server

THREADS = 64
"""Requests that wait for the model at one time; it answers them together."""
LAST_ANSWERS = 30
"""Seconds that a server which is asked to stop has for the requests that it has begun."""


def serve(config: ServeConfig) -> None:
    """Answer requests until the process is interrupted or terminated.

    Raises:
        UserError: there is no such run, or the port is taken.
    """
    import uvicorn

    finished = chosen_run(config)
    listening = _listen(config.host, config.port)
    with tempfile.TemporaryDirectory() as place, listening:
        folder = Path(place) / "model"
        save_model(finished, folder, config.base)
        app = build_app(folder, config, finished.name)
        protocol = with_request_timeout(config.max_seconds)
        settings = uvicorn.Config(app, http=protocol, log_level="warning", timeout_graceful_shutdown=LAST_ANSWERS)
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
    """Return a server in MLflow's protocol over a saved model, with a page at `/` and limits on what is asked.

    Args:
        folder: of the model; see `save_model`.
        config: its limits.
        name: of the run, for the page.
    """
    from fastapi import FastAPI, Request, Response
    from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT

    model = _load(folder, config)
    seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()
    app = FastAPI(openapi_url=None)  # nor its pages, which load scripts from elsewhere
    app.add_exception_handler(Exception, lambda *_: refusal(Refused(500, "The request cannot be answered.")))
    _add_pages(app, name, model)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        try:
            body = await read_body(request, config.max_bytes)
            kind = request.headers.get("content-type", "")
            return await asyncio.wait_for(asyncio.to_thread(_answer, model, body, kind), seconds)
        except TimeoutError:
            return refusal(Refused(504, f"The request has taken longer than {seconds} s."))
        except Refused as error:
            return refusal(error)

    return app


def _add_pages(app: "FastAPI", name: str, model: Any) -> None:
    """Add the page for people, and what MLflow's server tells of itself."""
    from fastapi import Response
    from fastapi.responses import HTMLResponse
    from mlflow.version import VERSION

    text, headers = page(name, model.scorer.labels, model.reads_pairs, model.scorer.trained.kind)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    @app.get("/ping")
    @app.get("/health")
    async def health() -> Response:
        return Response("\n", media_type="application/json")

    @app.get("/version")
    async def version() -> Response:
        return Response(VERSION, media_type="application/json")


def _load(folder: Path, config: ServeConfig) -> Any:
    """Return the model within MLflow's: see `python_model`."""
    with quiet_pyfunc() as pyfunc:
        keys = {"accelerator": config.accelerator, "max_tokens": config.max_tokens}
        model: Any = pyfunc.load_model(str(folder), model_config=keys).unwrap_python_model()
    model.most_rows = config.max_rows
    return model


def _answer(model: Any, body: bytes, content_type: str) -> "Response":
    """Return labels and probabilities of the texts of a request."""
    from fastapi.responses import JSONResponse
    from mlflow.exceptions import MlflowException

    table, params = read_request(body, content_type, model.reads_pairs)
    kind = model.scorer.trained.kind
    if params.get(CALIBRATED) and kind is not TargetKind.classes:
        raise Refused(
            400,
            f"params.calibrated corrects probabilities of classes, and this run predicts {kind.value}: leave it out.",
        )
    try:
        predictions = model.predict(None, table, params)
    except MlflowException as error:
        raise Refused(400, error.message) from None
    return JSONResponse({"predictions": predictions.to_dict("records")})


async def _run(server: "Server", listening: socket.socket) -> None:
    """Run a server in which more requests wait at one time than asyncio has threads for on a small machine."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "request"))
    await server.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections at once, so that no client that knows it is refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"host={host} port={port} cannot be used ({error.strerror}): host must be an address of this "
            "machine, and port one that is free; port=0 takes any."
        ) from None
    return listening
