"""`conf/tracking/`: where a run is recorded."""

from dataclasses import dataclass
from enum import Enum

from sentexp.errors import require


class TrackingBackend(Enum):
    """Where a run is recorded."""

    mlflow = "mlflow"
    none = "none"


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where the run is recorded."""

    backend: TrackingBackend
    uri: str | None
    experiment: str
    run_name: str | None
    system_metrics: bool

    def __post_init__(self) -> None:
        """MLflow refuses file stores, and an experiment needs a name."""
        require(bool(self.experiment.strip()), "tracking.experiment is empty: give the MLflow experiment a name.")
        require(
            self.uri is None or "://" in self.uri,
            f"tracking.uri={self.uri} must be an MLflow URI such as sqlite:///mlflow.db or http://127.0.0.1:5000.",
        )
