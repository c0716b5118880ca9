"""Runs are found by the store, which reads no others, however many there are."""

import pytest

from sentexp.config import TrackingBackend, TrackingConfig, from_conf
from sentexp.tracking import store as store_module
from sentexp.tracking.queries import runs_beginning, runs_named
from sentexp.tracking.run_logger import open_run_logger
from sentexp.tracking.store import open_store

NAMES = ("r=8 lr=2e-4", "R=8 lr=2e-4", "r_8", 'it\'s "odd" 100%', "r=8 lr=2e-4", "名")


@pytest.fixture
def place(store):
    return from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=store, system_metrics=False)


@pytest.fixture
def ids(place):
    """Return the ids of runs of these names; their identities begin with `abc0`, `abc1` and so on."""
    found = []
    for number, name in enumerate(NAMES):
        found.append(open_run_logger(place, name, None, {"identity": f"abc{number:013x}"}).run_id)
    return found


@pytest.fixture
def opened(place, monkeypatch):
    """Return the store, and how many runs it has read since."""
    opened, read = open_store(place), []
    walk = opened.walk

    def counting(*words, **named):
        for run in walk(*words, **named):
            read.append(run.info.run_id)
            yield run

    monkeypatch.setattr(opened, "walk", counting)
    return opened, read


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_found_by_their_exact_name(name, ids, opened):
    store, read = opened
    found = [run.info.run_id for run in runs_named(store, name)]
    expected = [run_id for run_id, other in zip(ids, NAMES, strict=True) if other == name]
    assert sorted(found) == sorted(expected)
    assert len(read) <= 3  # a pattern finds a little more than the name


def test_runs_are_found_by_the_beginning_of_id_or_identity(ids, opened):
    store, read = opened
    for number, run_id in enumerate(ids):
        assert run_id in [run.info.run_id for run in runs_beginning(store, run_id[:12])]
        assert [run.info.run_id for run in runs_beginning(store, f"abc{number:013x}")] == [run_id]
    assert len(read) <= 2 * len(ids)
    assert [run.info.run_id for run in runs_beginning(store, "abc0")] == ids[::-1]
    for nothing in ("xyz0", "ABC0", "ab_0", "%", "' OR 1=1"):
        assert runs_beginning(store, nothing) == []


def test_runs_of_ids_come_in_their_order_without_those_that_are_gone(ids, opened, monkeypatch):
    store, read = opened
    monkeypatch.setattr(store_module, "BATCH", 2)
    store.client.delete_run(ids[1])
    wanted = [ids[4], "0" * 32, ids[0], ids[1], ids[4], ids[3]]
    assert [run.info.run_id for run in store.of_ids(wanted)] == [ids[4], ids[0], ids[3]]
    assert len(read) <= 4
    assert store.of_ids([]) == []
