"""MLflow's client, which waits while another process holds the store, and whose errors are sentences."""

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.errors import UserError
from sentexp.system.signals import defer_signals
from sentexp.tracking.provenance import mask_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
PATIENCE = 120.0
"""Seconds to wait for a store that another process has locked, over MLflow's own 20."""
RETRY_AFTER = 0.5
LOST_RACE = ("UNIQUE constraint failed", "duplicate key value")
"""What databases say where two processes have written the same new row, a data set's for instance: it is there now."""
OWN_PATIENCE = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
"""MLflow's variables for servers that are slow."""
ANSWERS_WITHIN = (4.0, 5.0)
"""Seconds to connect to a server, and until its first word."""
MEANT_FOR_THE_CALLER = ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


def is_server(uri: str) -> bool:
    """Tell whether a store is a server."""
    return uri.startswith(("http://", "https://"))


@lru_cache
def connect(uri: str) -> "RetryingClient":
    """Return the client of a store; a process connects to it once.

    Raises:
        UserError: the store is locked for too long, of another MLflow version, or cannot be reached.
    """
    return RetryingClient(uri)


class RetryingClient:
    """MLflow's client: it waits while another process holds the store, and its errors are sentences."""

    def __init__(self, uri: str) -> None:
        self._where = mask_uri(uri)
        self._is_remote = is_server(uri)
        self._client = self._call(_open_client, uri)

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._client, name))

    def _call(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        began, has_warned = time.monotonic(), False
        while True:
            try:
                with nullcontext() if self._is_remote else defer_signals():
                    return action(*arguments, **options)
            except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
                if getattr(error, "error_code", "") in MEANT_FOR_THE_CALLER or is_disk_full(error):
                    raise
                lost_race = any(sign in str(error) for sign in LOST_RACE)
                if not (lost_race or "locked" in str(error)) or time.monotonic() - began > PATIENCE:
                    raise UserError(explain(error, self._where)) from error
                if not has_warned and not lost_race:
                    print(
                        f"sentexp: The MLflow store {self._where} is locked by another process: waiting.",
                        file=sys.stderr,
                    )
                    has_warned = True
                time.sleep(RETRY_AFTER)


def _open_client(uri: str) -> "MlflowClient":
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    for name in ("mlflow", "mlflow.store", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its tracebacks: a sentence tells of them
    if is_server(uri):
        _require_answer(uri)
    _create_whole(uri)
    return MlflowClient(tracking_uri=uri)


def _require_answer(uri: str) -> None:
    """Refuse a server that does not answer, which MLflow asks for minutes unless its variables say otherwise.

    Raises:
        UserError: it does not answer in seconds.
    """
    from requests import RequestException, get
    from requests.exceptions import SSLError

    if any(name in os.environ for name in OWN_PATIENCE):
        return
    try:
        get(uri, timeout=ANSWERS_WITHIN, allow_redirects=False, stream=True).close()
    except SSLError:  # MLflow has settings of its own for certificates
        return
    except RequestException as error:
        raise UserError(
            f"The MLflow server {mask_uri(uri)} does not answer ({type(error).__name__}): start it, check tracking.uri "
            "or MLFLOW_TRACKING_URI, or use tracking=none."
        ) from error


def _create_whole(uri: str) -> None:
    """Make a missing SQLite store under another name first.

    MLflow takes seconds for its tables, and a kill meanwhile would leave a store that no MLflow can open.
    """
    file = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or "?" in uri or file.exists():
        return
    from mlflow import MlflowClient

    unfinished = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        MlflowClient(tracking_uri=f"{SQLITE}{unfinished}").search_experiments(max_results=1)
        os.link(unfinished, file)  # unlike a renamed file, a link never replaces the store of a faster process
    except FileExistsError:
        return
    except OSError:
        if not unfinished.is_file() or file.exists():
            raise
        unfinished.replace(file)  # on a file system without links
    finally:
        unfinished.unlink(missing_ok=True)


def explain(error: Exception, where: str) -> str:
    """Return a sentence for what a store says when it cannot be used."""
    text = str(error)
    if "database schema" in text or "Can't locate revision" in text:
        return (
            f"The MLflow store {where} was written by another version of MLflow: install that version, run "
            "`mlflow db upgrade` on a copy if it is older, or name another store with tracking.uri."
        )
    if "locked" in text:
        return (
            f"The MLflow store {where} is locked by another process: end that process, or name another store with "
            "tracking.uri."
        )
    reason = (text.splitlines() or [type(error).__name__])[0]
    return f"The MLflow store {where} cannot be used ({reason[:200]}): check tracking.uri, or use tracking=none."


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error of any library means that a file could not be written for lack of space."""
    import errno

    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    signs = ("No space left on device", "File too large", "Disk quota exceeded", "database or disk is full")
    return getattr(error, "errno", None) in full or any(sign in str(error) for sign in signs)
