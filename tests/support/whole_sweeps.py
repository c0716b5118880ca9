"""Sweeps in processes of their own: what they ended with, what MLflow holds of them, and the command of its server."""

import json
import sys

import pytest
from mlflow import MlflowClient
from rounding import drift, rounding, smooth

from sentexp.tracking.store import PARENT

RATE, EPS = 3e-3, 1e-2
"""Of the fastest run, and of AdamW, where two ways of training are compared: no whole step is made of rounding."""


def table(folder):
    """Return what the last sweep in this folder ended with, but for times, memory and MLflow's ids."""
    last = max(folder.glob("multirun/*/*/runs.json"), key=lambda file: file.stat().st_mtime)
    runs = json.loads(last.read_text())
    for run in runs:
        run["metrics"] = {k: v for k, v in run["metrics"].items() if not k.endswith(("seconds", "memory_gib"))}
        del run["run_id"], run["earlier"]
    return json.dumps(runs, sort_keys=True)


def assert_alike(table, other):
    """Compare the tables of fused sweeps in float32: what reads beside a run changes its rounding."""
    tolerance = rounding() + drift(RATE, 24, EPS)
    for found, expected in zip(json.loads(table), json.loads(other), strict=True):
        metrics, wanted = found.pop("metrics"), expected.pop("metrics")
        assert metrics.keys() == wanted.keys()
        assert smooth(metrics) == pytest.approx(smooth(wanted), abs=tolerance)
        assert found.pop("objective") == pytest.approx(expected.pop("objective"), abs=tolerance, nan_ok=True)
        assert found == expected


def recorded(folder, store=None):
    """Return the sweep's MLflow run and its runs; there must be one of each identity."""
    runs = MlflowClient(store or f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])
    (parent,) = [run for run in runs if "sweep.identity" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert all(run.data.tags[PARENT] == parent.info.run_id for run in children)
    assert len({run.data.tags["identity"] for run in children}) == len(children)
    return parent, children


def mlflow_words(port: int) -> list[str]:
    """Return the command that serves MLflow's store in the current folder."""
    places = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "mlartifacts"]
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *places,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
