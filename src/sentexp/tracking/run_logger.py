"""Where a run is recorded while it lasts: one MLflow run, or nowhere."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentexp.config import TrackingBackend, TrackingConfig
from sentexp.distributed import processes
from sentexp.tracking.store import NOWHERE, Store, store_uri


@dataclass(frozen=True, slots=True)
class Measurement:
    """Metrics at an optimizer step, and when they were measured."""

    metrics: Mapping[str, float]
    step: int
    seconds: float = field(default_factory=time.time)
    """Since 1970."""


class RunLogger:
    """What a run writes to. This one is that of `tracking=none`: nothing is recorded."""

    where = NOWHERE

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None where nothing is recorded."""
        return None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the configuration as parameters."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at an optimizer step."""
        self.log_measurements([Measurement(metrics, step)])

    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Record metrics of several steps at once."""

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


class MlflowRunLogger(RunLogger):
    """One MLflow run, written through the client.

    Args:
        tracking: store and experiment.
        name: of a new run.
        resume: the id of a run to resume; a new run where it is None or no longer exists.
        tags: facts that the run has from its first moment, so that no kill can leave it without them.
        system_metrics: sample the load of the machine until the run ends.

    Raises:
        UserError: the store is locked for too long, of another MLflow version, or cannot be reached.
    """

    def __init__(
        self, tracking: TrackingConfig, name: str, resume: str | None, tags: Mapping[str, str], system_metrics: bool
    ) -> None:
        self.store = Store(store_uri(tracking), tracking.experiment)
        self.where = self.store.where
        self.monitor: Any = None
        if resume is not None and self.store.get_run(resume) is not None:
            self._id: str = resume
            self.store.client.update_run(resume, status="RUNNING")
            self.set_tags(tags)
        else:
            run = self.store.client.create_run(self.store.experiment, run_name=name, tags=dict(tags))
            self._id = run.info.run_id
        if system_metrics:
            self.monitor = self._start_monitor(resumed=self._id == resume)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, those of a resumed run once only."""
        from mlflow.entities import Param

        recorded = self.store.client.get_run(self._id).data.params
        new = [Param(key, str(value)[:500]) for key, value in params.items() if key not in recorded]
        self.store.client.log_batch(self._id, params=new)

    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Record metrics in one transaction, or in several where MLflow takes no more at once."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH

        rows = [
            Metric(name, float(value), int(at.seconds * 1000), at.step)
            for at in measurements
            for name, value in at.metrics.items()
        ]
        for start in range(0, len(rows), MAX_METRICS_PER_BATCH):
            self.store.client.log_batch(self._id, metrics=rows[start : start + MAX_METRICS_PER_BATCH])

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


def open_run_logger(
    tracking: TrackingConfig,
    name: str,
    resume: str | None = None,
    tags: Mapping[str, str] | None = None,
    system_metrics: bool = False,
) -> RunLogger:
    """Return where a run is recorded, as `tracking.backend` says; only the main process records.

    The other arguments are those of `MlflowRunLogger`.
    """
    if tracking.backend is TrackingBackend.none or not processes.is_main():
        return RunLogger()
    return MlflowRunLogger(tracking, name, resume, tags or {}, system_metrics)
