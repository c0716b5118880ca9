"""The MLflow store: SQLite by default, written with the client alone, never through a global active run (law 1)."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sentexp.config import TrackingBackend, TrackingConfig
from sentexp.distributed import processes
from sentexp.errors import UserError
from sentexp.tracking.client import SQLITE, RetryingClient, connect
from sentexp.tracking.provenance import mask_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT = "mlflow.parentRunId"
DEFAULT_URI = f"{SQLITE}mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
NOWHERE = "nowhere (tracking=none)"
"""Where runs are recorded without a store, in messages."""
PAGE = 1000
BATCH = 200
"""Ids in one query."""


class Store:
    """The MLflow store and the experiment in it, created where it is missing.

    Args:
        uri: of the store.
        experiment: its name.

    Raises:
        UserError: the store is locked for too long, of another MLflow version, or cannot be reached.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.where = mask_uri(uri)
        self.client = connect(uri)
        self.experiment = _experiment(self.client, experiment, uri)
        self._places: dict[str, str] = {}

    def exists(self, run_id: str) -> bool:
        """Tell whether there is such a run that was not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def artifact(self, run_id: str, name: str) -> Path | None:
        """Return an artifact of a run as a file, its own or a copy for this process; None where it is gone."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.file_utils import local_file_uri_to_path

        place = self._places.get(run_id) or self.client.get_run(run_id).info.artifact_uri
        if urlsplit(place).scheme in ("", "file"):  # a server's own is mlflow-artifacts:/
            file = Path(local_file_uri_to_path(place)) / name
            return file if file.exists() else None
        try:
            return Path(self.client.download_artifacts(run_id, name, _downloads()))
        except (UserError, MlflowException, OSError):
            return None

    def search(self, query: str, most: int | None = None) -> "list[Run]":
        """Return the runs of the experiment that an MLflow filter finds, the latest first."""
        return list(islice(self.walk(query, page=min(most or PAGE, PAGE)), most))

    def of_ids(self, run_ids: Sequence[str]) -> "list[Run]":
        """Return these runs of the experiment in this order, without those that were deleted; many at one time."""
        found: dict[str, Run] = {}
        for start in range(0, len(run_ids), BATCH):
            ids = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + BATCH])
            found |= {run.info.run_id: run for run in self.search(f"attributes.run_id IN ({ids})")}
        return [found[run_id] for run_id in dict.fromkeys(run_ids) if run_id in found]

    def walk(self, query: str, order: str | None = None, page: int = PAGE) -> "Iterator[Run]":
        """Yield the runs that an MLflow filter finds, the one that was started last first unless an order is given."""
        token = None
        while True:
            runs = self.client.search_runs(
                [self.experiment],
                query,
                max_results=page,
                order_by=None if order is None else [order],
                page_token=token,
            )
            self._places |= {run.info.run_id: run.info.artifact_uri for run in runs}  # it never changes
            yield from runs
            token = runs.token
            if not token:
                return


def open_store(tracking: TrackingConfig) -> Store:
    """Return the store and the experiment that a configuration names; a process connects to it once."""
    return _open_store(store_uri(tracking), tracking.experiment)


def find_store(tracking: TrackingConfig) -> Store | None:
    """Return the store of a configuration if it is there and holds the experiment: looking creates nothing."""
    uri = store_uri(tracking)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE).partition("?")[0]).is_file():
        return None
    return None if connect(uri).get_experiment_by_name(tracking.experiment) is None else open_store(tracking)


@lru_cache
def _downloads() -> str:
    """Return a folder that is there as long as this process."""
    folder = tempfile.mkdtemp(prefix="sentexp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache
def _open_store(uri: str, experiment: str) -> Store:
    return Store(uri, experiment)


def find_run(tracking: TrackingConfig, tag: str, value: str, status: str | None = None) -> "Run | None":
    """Return the latest MLflow run of the experiment whose tag has this value, if there is one: in the main process.

    Args:
        tracking: store and experiment.
        tag: its key.
        value: of the tag.
        status: that the run must have; None is any.

    Raises:
        UserError: the store cannot be used.
    """
    if tracking.backend is TrackingBackend.none or not processes.is_main():
        return None
    ended = "" if status is None else f"attributes.status = '{status}' AND "
    store = find_store(tracking)
    runs = [] if store is None else store.search(f"{ended}tags.`{tag}` = '{value}'", most=1)
    return runs[0] if runs else None


def read_artifact(store: Store, run_id: str, name: str) -> str | None:
    """Return a text artifact of a run; None where it is gone."""
    file = store.artifact(run_id, name)
    return None if file is None else file.read_text(encoding="utf-8")


def describe_store(tracking: TrackingConfig) -> str:
    """Return where runs are recorded, for messages."""
    return NOWHERE if tracking.backend is TrackingBackend.none else mask_uri(store_uri(tracking))


def store_uri(tracking: TrackingConfig) -> str:
    """Return the store: `tracking.uri`, else `MLFLOW_TRACKING_URI`, else SQLite in the current folder."""
    return tracking.uri or os.environ.get(URI_VARIABLE) or DEFAULT_URI


def _experiment(client: RetryingClient, name: str, uri: str) -> str:
    """Return the id of an experiment, created where it is missing; two processes may try at once."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={name} was deleted in this MLflow store: restore it (`mlflow experiments restore`) "
            "or choose another name."
        )
    return str(experiment.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Return a folder beside an SQLite file; a server or another database decides itself."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri()
