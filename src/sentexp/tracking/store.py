"""The MLflow store: SQLite by default, written with the client alone, never through a global active run (law 1)."""

import atexit
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sentexp.config import TrackingBackend, TrackingConfig
from sentexp.distributed import processes
from sentexp.errors import UserError
from sentexp.tracking.client import SQLITE, RetryingClient, connect, explain
from sentexp.tracking.provenance import mask_uri
from sentexp.tracking.sqlite_reader import Run, SqliteReader, Wanted

PARENT = "mlflow.parentRunId"
DEFAULT_URI = f"{SQLITE}mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
NOWHERE = "nowhere (tracking=none)"
"""Where runs are recorded without a store, in messages."""
PAGE = 1000
ALL = Wanted()
BATCH = 200
"""Ids in one query."""


class Store:
    """The MLflow store and the experiment in it, created where it is missing.

    An SQLite file is read without MLflow, which is imported where `client` is asked for.

    Args:
        uri: of the store.
        experiment: its name.

    Raises:
        UserError: the store is locked for too long, of another MLflow version, or cannot be reached.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.where = mask_uri(uri)
        self.experiment = _find_experiment(uri, experiment) or _create_experiment(uri, experiment)
        self._reader = _reader(uri)
        self._places: dict[str, str] = {}

    @property
    def client(self) -> RetryingClient:
        """MLflow's client."""
        return connect(self.uri)

    def get_run(self, run_id: str) -> Run | None:
        """Return a run; None where there is none, or it was deleted."""
        try:
            run = self._ask_for_run(run_id) if self._reader is None else self._reader.get_run(run_id)
        except sqlite3.Error:  # MLflow's client waits for a locked store, or says what is wrong
            run = self._ask_for_run(run_id)
        return run if run is not None and run.info.lifecycle_stage == "active" else None

    def _ask_for_run(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            run: Run = self.client.get_run(run_id)
        except MlflowException:
            return None
        return run

    def artifact(self, run_id: str, name: str) -> Path | None:
        """Return an artifact of a run as a file, its own or a copy for this process; None where it is gone."""
        folder = self._folder(run_id)
        if folder is not None:
            file = folder / name
            return file if file.exists() else None
        from mlflow.exceptions import MlflowException

        try:
            return Path(self.client.download_artifacts(run_id, name, _downloads()))
        except (UserError, MlflowException, OSError):
            return None

    def log_artifact(self, run_id: str, file: Path, folder: str) -> None:
        """Put a file among the artifacts of a run, in a folder there."""
        place = self._folder(run_id)
        if place is None:
            self.client.log_artifact(run_id, str(file), folder)
            return
        (place / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place / folder)

    def _folder(self, run_id: str) -> Path | None:
        """Return where the artifacts of a run are; None where they are not on this machine."""
        if run_id not in self._places:
            run = self.get_run(run_id)
            self._places[run_id] = "" if run is None else run.info.artifact_uri  # it never changes
        place = urlsplit(self._places[run_id])
        local = place.scheme in ("", "file") and place.path  # a server's own is mlflow-artifacts:/
        return Path(url2pathname(place.path) if place.scheme else self._places[run_id]) if local else None

    def search(self, wanted: Wanted = ALL, most: int | None = None) -> list[Run]:
        """Return runs of the experiment, the latest first."""
        return list(islice(self.walk(wanted, page=min(most or PAGE, PAGE)), most))

    def walk(self, wanted: Wanted = ALL, page: int = PAGE) -> Iterator[Run]:
        """Yield runs of the experiment, the one that was started last first unless another order is wanted."""
        seen = 0
        if self._reader is not None:
            with suppress(sqlite3.Error):
                for runs in self._reader.walk(self.experiment, wanted, page):
                    yield from self._noted(runs)
                    seen += len(runs)
                return
        yield from islice(self.search_by(wanted.as_filter(), wanted.as_order(), page), seen, None)

    def of_ids(self, run_ids: Sequence[str]) -> list[Run]:
        """Return these runs of the experiment in this order, without those that were deleted; many at one time."""
        found: dict[str, Run] = {}
        for start in range(0, len(run_ids), BATCH):
            wanted = Wanted(ids=tuple(run_ids[start : start + BATCH]))
            found |= {run.info.run_id: run for run in self.walk(wanted)}
        return [found[run_id] for run_id in dict.fromkeys(run_ids) if run_id in found]

    def search_by(self, query: str, order: list[str] | None = None, page: int = PAGE) -> Iterator[Run]:
        """Yield the runs that a filter of MLflow's finds, the one that was started last first unless ordered."""
        token = None
        while True:
            runs = self.client.search_runs([self.experiment], query, max_results=page, order_by=order, page_token=token)
            yield from self._noted(runs)
            token = runs.token
            if not token:
                return

    def _noted(self, runs: list[Run]) -> list[Run]:
        """Note where the artifacts of runs are."""
        self._places |= {run.info.run_id: run.info.artifact_uri for run in runs}
        return runs


def open_store(tracking: TrackingConfig) -> Store:
    """Return the store and the experiment that a configuration names; a process connects to it once."""
    return _open_store(store_uri(tracking), tracking.experiment)


def find_store(tracking: TrackingConfig) -> Store | None:
    """Return the store of a configuration if it is there and holds the experiment: looking creates nothing."""
    uri = store_uri(tracking)
    if uri.startswith(SQLITE) and not _file(uri).is_file():
        return None
    return None if _find_experiment(uri, tracking.experiment) is None else open_store(tracking)


def _file(uri: str) -> Path:
    """Return the file of an SQLite store."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _reader(uri: str) -> SqliteReader | None:
    """Return what reads a store without MLflow; None where only MLflow can."""
    return SqliteReader(_file(uri)) if uri.startswith(SQLITE) and "?" not in uri and _file(uri).is_file() else None


@lru_cache
def _downloads() -> str:
    """Return a folder that is there as long as this process."""
    folder = tempfile.mkdtemp(prefix="sentexp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache
def _open_store(uri: str, experiment: str) -> Store:
    return Store(uri, experiment)


def find_run(tracking: TrackingConfig, tag: str, value: str, status: str | None = None) -> Run | None:
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
    store = find_store(tracking)
    runs = [] if store is None else store.search(Wanted(status=status, tag=tag, value=value), most=1)
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


def _find_experiment(uri: str, name: str) -> str | None:
    """Return the id of an experiment; None where it is missing.

    Raises:
        UserError: it was deleted, or the file is not a database.
    """
    reader = _reader(uri)
    try:
        found = _ask_for_experiment(uri, name) if reader is None else reader.experiment(name)
    except sqlite3.Error as error:
        if "not a database" in str(error):  # MLflow's client tries again for minutes
            raise UserError(explain(error, mask_uri(uri))) from None
        found = _ask_for_experiment(uri, name)
    if found is None:
        return None
    number, stage = found
    if stage != "active":
        raise UserError(
            f"tracking.experiment={name} was deleted in this MLflow store: restore it (`mlflow experiments restore`) "
            "or choose another name."
        )
    return number


def _ask_for_experiment(uri: str, name: str) -> tuple[str, str] | None:
    """Return the id and the state of an experiment."""
    experiment = connect(uri).get_experiment_by_name(name)
    return None if experiment is None else (str(experiment.experiment_id), experiment.lifecycle_stage)


def _create_experiment(uri: str, name: str) -> str:
    """Return the id of a new experiment; two processes may try at once."""
    from mlflow.exceptions import MlflowException

    try:
        return str(connect(uri).create_experiment(name, artifact_location=_artifact_location(uri)))
    except MlflowException:
        found = _find_experiment(uri, name)
        if found is None:
            raise
        return found


def _artifact_location(uri: str) -> str | None:
    """Return a folder beside an SQLite file; a server or another database decides itself."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri()
