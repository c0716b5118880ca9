"""The MLflow store: SQLite by default, written with the client alone, never through a global active run (law 1)."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import TrackingBackend, TrackingConfig
from sentexp.errors import UserError
from sentexp.tracking.provenance import mask_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"


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

    Raises:
        UserError: the store is locked, of another MLflow version, or cannot be reached.
    """

    def __init__(self, tracking: TrackingConfig, name: str, resume: str | None) -> None:
        self.uri = store_uri(tracking)
        self.where = mask_uri(self.uri)
        self.monitor: Any = None
        with _store_errors(self.where):
            self.client = _connect(self.uri)
            experiment = _experiment(self.client, tracking.experiment, self.uri)
            if resume is not None and self._exists(resume):
                self._id: str = resume
                self.client.update_run(resume, status="RUNNING")
            else:
                run = self.client.create_run(experiment, run_name=tracking.run_name or name)
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

        with _store_errors(self.where):
            known = self.client.get_run(self._id).data.params
            new = [Param(key, str(value)[:500]) for key, value in params.items() if key not in known]
            self.client.log_batch(self._id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics in one transaction."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with _store_errors(self.where):
            self.client.log_batch(self._id, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags in one transaction."""
        from mlflow.entities import RunTag

        with _store_errors(self.where):
            self.client.log_batch(self._id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_text(self, text: str, name: str) -> None:
        """Record a text artifact."""
        with _store_errors(self.where):
            self.client.log_text(self._id, text, name)

    def log_files(self, path: Path, folder: str | None = None) -> None:
        """Record a file or a folder."""
        with _store_errors(self.where):
            if path.is_dir():
                self.client.log_artifacts(self._id, str(path), folder)
            else:
                self.client.log_artifact(self._id, str(path), folder)

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Record the data set in the form of `mlflow.log_input`; its digest is cut to MLflow's 36 characters."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name, digest=digest[:36], source_type="sentexp", source=source, schema=None, profile=profile
        )
        with _store_errors(self.where):
            self.client.log_inputs(
                self._id, datasets=[DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])]
            )

    def finish(self, status: str) -> None:
        """End the run and its system metrics."""
        if self.monitor is not None:
            self.monitor.finish()
        with _store_errors(self.where):
            self.client.set_terminated(self._id, status=status)

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def _start_monitor(self, resumed: bool) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self._id, resume_logging=resumed, tracking_uri=self.uri)
        monitor.start()
        return monitor


def open_record(tracking: TrackingConfig, name: str, resume: str | None) -> Record:
    """Return where this run is recorded, as `tracking.backend` says."""
    return Record() if tracking.backend is TrackingBackend.none else MlflowRecord(tracking, name, resume)


def find_finished(tracking: TrackingConfig, tag: str, value: str) -> "Run | None":
    """Return the latest finished MLflow run of the experiment whose tag has this value, if there is one.

    Raises:
        UserError: the store cannot be used.
    """
    if tracking.backend is TrackingBackend.none:
        return None
    uri = store_uri(tracking)
    with _store_errors(mask_uri(uri)):
        client = _connect(uri)
        runs = client.search_runs(
            [_experiment(client, tracking.experiment, uri)],
            f"attributes.status = 'FINISHED' AND tags.`{tag}` = '{value}'",
            max_results=1,
        )
    return runs[0] if runs else None


def store_uri(tracking: TrackingConfig) -> str:
    """Return the store: `tracking.uri`, else `MLFLOW_TRACKING_URI`, else SQLite in the current folder."""
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _connect(uri: str) -> "MlflowClient":
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    for name in ("mlflow", "mlflow.store", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
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
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


@contextmanager
def _store_errors(where: str) -> Iterator[None]:
    """Turn what a store says when it cannot be used into a sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        text = str(error)
        if "database schema" in text or "Can't locate revision" in text:
            raise UserError(
                f"The MLflow store {where} was written by another version of MLflow: install that version, run "
                "`mlflow db upgrade` on a copy if it is older, or name another store with tracking.uri."
            ) from error
        if "locked" in text:
            raise UserError(
                f"The MLflow store {where} is locked by another process: end that process, or name another store "
                "with tracking.uri."
            ) from error
        if is_disk_full(error):
            raise
        reason = (text.splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The MLflow store {where} cannot be used ({reason[:200]}): check tracking.uri, or use tracking=none."
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error of any library means that a file could not be written for lack of space."""
    import errno

    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    signs = ("No space left on device", "File too large", "Disk quota exceeded", "database or disk is full")
    return getattr(error, "errno", None) in full or any(sign in str(error) for sign in signs)
