"""A store behind MLflow's own server: what is logged there is read again."""

import pytest

from sentexp.config import TrackingBackend, TrackingConfig, from_conf
from sentexp.tracking.run_logger import open_run_logger
from sentexp.tracking.store import open_store, read_artifact

pytestmark = pytest.mark.slow


def test_an_artifact_of_a_server_is_read(mlflow_server, tmp_path):
    tracking = from_conf(
        TrackingConfig, backend=TrackingBackend.mlflow, uri=mlflow_server(tmp_path), system_metrics=False
    )
    record = open_run_logger(tracking, "a run")
    record.log_text("what was said", "predictions/said.txt")
    record.finish("FINISHED")
    store = open_store(tracking)
    assert store.client.get_run(record.run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    assert read_artifact(store, record.run_id, "predictions/said.txt") == "what was said"
    assert read_artifact(store, record.run_id, "predictions/missing.txt") is None
