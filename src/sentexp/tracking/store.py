"""The MLflow store: SQLite by default, written with the client alone, never through a global active run (law 1)."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sentexp.config import TrackingBackend, TrackingConfig
from sentexp.distributed import processes
from sentexp.errors import UserError
from sentexp.tracking.provenance import mask_uri
from sentexp.tracking.signals import undisturbed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT = "mlflow.parentRunId"
SQLITE = "sqlite:///"
DEFAULT_URI = f"{SQLITE}mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
PATIENCE = 120.0
"""Seconds to wait for a store that another process has locked, over MLflow's own 20."""
RETRY_AFTER = 0.5
LOST_RACE = ("UNIQUE constraint failed", "duplicate key value")
"""What databases say where two processes have written the same new row, a data set's for instance: it is there now."""
PAGE = 1000
MEANT_FOR_THE_CALLER = ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


class Record:
    """What a run writes to. As it stands, `tracking=none`: nothing is recorded."""

    where = "nowhere (tracking=none)"

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None where nothing is recorded."""
        return None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the configuration as parameters."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at an optimizer step."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts about the run."""

    def log_text(self, text: str, name: str) -> None:
        """Record a text as an artifact of this name."""

    def log_files(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or a folder with all in it, as artifacts."""

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Record the data set as the run's input."""

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""


class MlflowRecord(Record):
    """One MLflow run, written through the client.

    Args:
        tracking: store, experiment and run name.
        name: of the run, where `tracking.run_name` is null.
        resume: the id of a run to go on with; a new run where it is None or gone.
        tags: facts that the run has from its first moment, so that no kill can leave it without them.

    Raises:
        UserError: the store is locked for too long, of another MLflow version, or cannot be reached.
    """

    def __init__(self, tracking: TrackingConfig, name: str, resume: str | None, tags: Mapping[str, str]) -> None:
        self.store = Store(store_uri(tracking), tracking.experiment)
        self.where = self.store.where
        self.monitor: Any = None
        if resume is not None and self.store.exists(resume):
            self._id: str = resume
            self.store.client.update_run(resume, status="RUNNING")
            self.set_tags(tags)
        else:
            run = self.store.client.create_run(
                self.store.experiment, run_name=tracking.run_name or name, tags=dict(tags)
            )
            self._id = run.info.run_id
        if tracking.system_metrics:
            self.monitor = self._start_monitor(resumed=self._id == resume)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, those of a resumed run once only."""
        from mlflow.entities import Param

        known = self.store.client.get_run(self._id).data.params
        new = [Param(key, str(value)[:500]) for key, value in params.items() if key not in known]
        self.store.client.log_batch(self._id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics in one transaction."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.store.client.log_batch(self._id, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags in one transaction."""
        from mlflow.entities import RunTag

        self.store.client.log_batch(self._id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_text(self, text: str, name: str) -> None:
        """Record a text artifact."""
        self.store.client.log_text(self._id, text, name)

    def log_files(self, path: Path, folder: str | None = None) -> None:
        """Record a file or a folder."""
        log = self.store.client.log_artifacts if path.is_dir() else self.store.client.log_artifact
        log(self._id, str(path), folder)

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Record the data set in the form of `mlflow.log_input`; its digest is cut to MLflow's 36 characters."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name, digest=digest[:36], source_type="sentexp", source=source, schema=None, profile=profile
        )
        self.store.client.log_inputs(
            self._id, datasets=[DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])]
        )

    def finish(self, status: str) -> None:
        """End the run and its system metrics."""
        if self.monitor is not None:
            self.monitor.finish()
        self.store.client.set_terminated(self._id, status=status)

    def _start_monitor(self, resumed: bool) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self._id, resume_logging=resumed, tracking_uri=self.store.uri)
        monitor.start()
        return monitor


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
        self.client = _client(uri)
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
        found: list[Run] = []
        token = None
        while most is None or len(found) < most:
            page = self.client.search_runs(
                [self.experiment], query, max_results=min(most or PAGE, PAGE), page_token=token
            )
            found += page
            self._places |= {run.info.run_id: run.info.artifact_uri for run in page}  # it never changes
            token = page.token
            if not token:
                break
        return found


def open_store(tracking: TrackingConfig) -> Store:
    """Return the store and the experiment that a configuration names; a process connects to it once."""
    return _open_store(store_uri(tracking), tracking.experiment)


def find_store(tracking: TrackingConfig) -> Store | None:
    """Return the store of a configuration if it is there and holds the experiment: looking creates nothing."""
    uri = store_uri(tracking)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE).partition("?")[0]).is_file():
        return None
    return None if _client(uri).get_experiment_by_name(tracking.experiment) is None else open_store(tracking)


@lru_cache
def _downloads() -> str:
    """Return a folder that is there as long as this process."""
    folder = tempfile.mkdtemp(prefix="sentexp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache
def _client(uri: str) -> "_PatientClient":
    return _PatientClient(uri)


@lru_cache
def _open_store(uri: str, experiment: str) -> Store:
    return Store(uri, experiment)


def open_record(
    tracking: TrackingConfig, name: str, resume: str | None = None, tags: Mapping[str, str] | None = None
) -> Record:
    """Return where this run is recorded, as `tracking.backend` says; by the leading process alone."""
    if tracking.backend is TrackingBackend.none or not processes.leads():
        return Record()
    return MlflowRecord(tracking, name, resume, tags or {})


def find_run(tracking: TrackingConfig, tag: str, value: str, status: str | None = None) -> "Run | None":
    """Return the latest MLflow run of the experiment whose tag has this value, if there is one: to the leading process.

    Args:
        tracking: store and experiment.
        tag: its key.
        value: of the tag.
        status: that the run must have; None is any.

    Raises:
        UserError: the store cannot be used.
    """
    if tracking.backend is TrackingBackend.none or not processes.leads():
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
    """Return where runs are recorded, as people are told."""
    return Record.where if tracking.backend is TrackingBackend.none else mask_uri(store_uri(tracking))


def store_uri(tracking: TrackingConfig) -> str:
    """Return the store: `tracking.uri`, else `MLFLOW_TRACKING_URI`, else SQLite in the current folder."""
    return tracking.uri or os.environ.get(URI_VARIABLE) or DEFAULT_URI


class _PatientClient:
    """MLflow's client: it waits while another process holds the store, and its errors are sentences."""

    def __init__(self, uri: str) -> None:
        self._where = mask_uri(uri)
        self._is_remote = uri.startswith(("http://", "https://"))
        self._client = self._call(_connect, uri)

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._client, name))

    def _call(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        began, told = time.monotonic(), False
        while True:
            try:
                with nullcontext() if self._is_remote else undisturbed():
                    return action(*arguments, **options)
            except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
                if getattr(error, "error_code", "") in MEANT_FOR_THE_CALLER or is_disk_full(error):
                    raise
                lost_race = any(sign in str(error) for sign in LOST_RACE)
                if not (lost_race or "locked" in str(error)) or time.monotonic() - began > PATIENCE:
                    raise UserError(_explain(error, self._where)) from error
                if not told and not lost_race:
                    print(
                        f"sentexp: The MLflow store {self._where} is locked by another process: waiting.",
                        file=sys.stderr,
                    )
                    told = True
                time.sleep(RETRY_AFTER)


def _connect(uri: str) -> "MlflowClient":
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    for name in ("mlflow", "mlflow.store", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its tracebacks: a sentence tells of them
    _create_whole(uri)
    return MlflowClient(tracking_uri=uri)


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


def _experiment(client: _PatientClient, name: str, uri: str) -> str:
    """Return the id of an experiment, created where it is missing; two processes may try at once."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri)))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={name} was deleted in this MLflow store: restore it (`mlflow experiments restore`) "
            "or choose another name."
        )
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Return a folder beside an SQLite file; a server or another database decides itself."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri()


def _explain(error: Exception, where: str) -> str:
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
