"""What the tests of comparisons share: runs whose answers are made by simulation, so that the truth is known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sentexp.compare.comparison import Comparison, Configuration, Scored
from sentexp.config import CompareConfig, TrackingBackend, TrackingConfig, from_conf
from sentexp.tracking.predictions import write_predictions
from sentexp.tracking.run_logger import open_run_logger
from sentexp.tracking.store import PARENT


def answers(chance, targets, skill, shared=None, noise=1.0):
    """Return probabilities of two classes, shape (rows, 2); `shared` is what all runs find hard in the same rows."""
    margin = noise * chance.normal(size=len(targets)) + (2 * targets - 1) * skill
    margin = margin if shared is None else margin + shared
    positive = 1 / (1 + np.exp(-margin))
    return np.stack([1 - positive, positive], 1).astype(np.float32)


@pytest.fixture
def simulate():
    """Return a function that makes a comparison: for each configuration its name, skill and number of seeds.

    With a spread the skill of a run depends on its seed, too.
    """

    def make(configurations, rows=400, seed=0, baselines=(), spread=0.0):
        chance = np.random.default_rng(seed)
        targets = chance.integers(0, 2, rows)
        shared = chance.normal(size=rows)

        def run(name, skill, number):
            return Scored(
                run_id=f"{name}-{number}".replace(" ", "-"),
                name=f"{name} seed={number}",
                seed=str(number),
                probabilities=answers(chance, targets, skill, shared, 0.5),
                file=Path("missing.parquet"),
                settings={"peft.r": name.partition("=")[2], "optim.lr": "0.0005"},
                metrics={"train/seconds": 60.0, "parameters/trainable": 1000.0, "peak_memory_gib": 1.5},
                tags={"command": f"python -m sentexp {name} seed={number}"},
            )

        words = np.array(["short", "long"])
        return Comparison(
            title="sweep r=1,2",
            split="test",
            labels=["negative", "positive"],
            ids=np.array([f"{number:016x}" for number in range(rows)]),
            targets=targets,
            slices={"length": (chance.integers(0, 2, rows), list(words))},
            configurations=[
                Configuration(
                    name=name,
                    runs=[
                        run(name, skill + spread * (2 * number - seeds - 1), number) for number in range(1, seeds + 1)
                    ],
                )
                for name, skill, seeds in configurations
            ],
            baselines=[
                Configuration(name=name, runs=[run(name, skill, 0)], baseline=kind) for name, kind, skill in baselines
            ],
        )

    return make


@pytest.fixture
def record(store, tmp_path):
    """Return a function that records a run whose answers are simulated, as a run of sentexp is, and returns its id."""

    def make(
        name, skill=1.0, rows=60, seed=0, parent=None, status="FINISHED", predictions=True, tags=None,
        labels=("negative", "positive"), **params,
    ):  # fmt: skip
        chance = np.random.default_rng([7, round(skill * 1000), seed])
        targets = np.arange(rows) % 2
        found = open_run_logger(tracking_of(store), name, None, {"identity": name, **(tags or {})})
        if parent is not None:
            found.set_tags({PARENT: parent})
        found.log_params({"peft": "lora", "seed": seed, "tracking.uri": store, **params})
        found.log_metrics({"train/seconds": 10.0, "parameters/trainable": 1000.0, "temperature": 1.5})
        if predictions:
            table = pa.table(
                {
                    "text": [f"film {number} is {'good ' * (number % 12)}" for number in range(rows)],
                    "label": pa.array(targets, pa.int64()),
                    "key": pa.array(np.arange(rows), pa.uint64()),
                    "slice.language": [("en", "de")[number % 3 == 0] for number in range(rows)],
                }
            )
            file = tmp_path / found.run_id / "test.parquet"
            write_predictions(table, list(labels), answers(chance, targets, skill), file)
            found.log_files(file.parent, "predictions")
        found.finish(status)
        return found.run_id

    return make


@pytest.fixture
def sweep(record, store):
    """Return the id of a sweep of three ranks and two seeds each, one of whose runs has failed."""
    parent = open_run_logger(tracking_of(store), "sweep r=2,4,8 seed=1,2", None, {"sweep.identity": "a sweep"})
    for rank, skill in ((2, 0.2), (4, 2.0), (8, 2.1)):
        for seed in (1, 2):
            failed = (rank, seed) == (8, 2)
            record(
                f"r={rank} seed={seed}",
                skill,
                seed=seed,
                parent=parent.run_id,
                status="FAILED" if failed else "FINISHED",
                predictions=not failed,
                **{"peft.r": rank},
            )
    parent.finish("FAILED")
    return parent.run_id


def tracking_of(store):
    return from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=store, system_metrics=False)


@pytest.fixture
def comparing(store):
    """Return a function from keys of `compare` to its configuration over the store."""
    return lambda **keys: from_conf(CompareConfig, tracking=tracking_of(store), **keys)
