"""Runs beside each other: aligned, grouped by what differs but the seed, and refused where rows tell nothing."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentexp.compare.comparison import load
from sentexp.config import EvaluatedSplit
from sentexp.errors import UserError
from sentexp.tracking.store import open_store


@pytest.fixture
def file_of(comparing):
    """Return a function from a run's id to its file of test predictions."""
    return lambda run_id: open_store(comparing().tracking).artifact(run_id, "predictions/test.parquet")


def test_runs_that_differ_in_their_seed_alone_are_one_configuration(sweep, comparing):
    found = load(comparing())
    assert [(one.name, [run.seed for run in one.runs]) for one in found.configurations] == [
        ("r=2", ["1", "2"]),
        ("r=4", ["1", "2"]),
        ("r=8", ["1"]),
    ]
    assert found.labels == ["negative", "positive"]
    assert len(found.targets) == 60
    assert sorted(found.slices) == ["language", "length"]
    assert found.parent_id == sweep
    assert "r=8 seed=2" in found.notes[0]


def test_a_run_that_was_repeated_is_no_other_seed(record, comparing):
    ids = [record("alone"), record("alone"), record("another", 2.0, **{"peft.r": 2})]
    found = load(comparing(experiment_name="sentexp"))
    assert [[run.run_id for run in one.runs] for one in found.configurations] == [[ids[1]], [ids[2]]]
    assert found.notes == ["Runs were repeated with the same seed, and the last of each counts: alone."]
    assert [len(one.runs) for one in load(comparing(runs=ids), group=False).configurations] == [1, 1, 1]


def test_runs_of_the_same_name_are_named_by_what_differs(record, comparing):
    ids = [record("smollm-lora", skill, **{"peft.r": rank, "optim.lr": 0.1}) for skill, rank in ((1.0, 4), (2.0, 8))]
    assert [one.name for one in load(comparing(runs=ids)).configurations] == ["r=4", "r=8"]
    same = [*ids, record("smollm-lora", 1.5, tags={"note": "again"}, **{"peft.r": 4, "optim.lr": 0.1, "x": 1})]
    names = [one.name for one in load(comparing(runs=same)).configurations]
    assert len(set(names)) == 3


def test_runs_of_several_sweeps_over_seeds_are_named_by_keys_that_others_leave_alone(record, comparing):
    """A key with the value that earlier releases computed by is no setting of a run, and names it all the same."""
    kept = [record("seed=1", seed=1, **{"task.r_drop": 0.0}), record("seed=2", seed=2)]
    others = [record(f"seed={seed}", 2.0, seed=seed, **{"task.r_drop": 0.5}) for seed in (1, 2)]
    found = load(comparing(runs=[*kept, *others]))
    assert [(one.name, len(one.runs)) for one in found.configurations] == [("r_drop=0", 2), ("r_drop=0.5", 2)]


def test_rows_in_another_order_are_put_in_the_same(record, comparing, file_of):
    ids = [record("a", 1.0, **{"peft.r": 4}), record("b", 1.0, **{"peft.r": 8})]
    file = file_of(ids[1])
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(table.num_rows)
    pq.write_table(table.take(order), file)
    found = load(comparing(runs=ids))
    first, second = (one.runs[0].probabilities for one in found.configurations)
    assert np.array_equal(first, second)


def test_runs_of_different_rows_are_refused_and_named(record, comparing):
    ids = [record("a", rows=60), record("b", rows=60, **{"peft.r": 1}), record("c", rows=80)]
    with pytest.raises(UserError) as told:
        load(comparing(runs=ids))
    assert "measured on different test rows" in str(told.value)
    assert f"60 rows: a ({ids[0][:8]}), b ({ids[1][:8]}); 80 rows: c ({ids[2][:8]})" in str(told.value)


def test_the_same_texts_with_other_labels_are_other_rows(record, comparing, file_of):
    ids = [record("a"), record("b", **{"peft.r": 1})]
    file = file_of(ids[1])
    table = pq.read_table(file)
    flipped = pa.array(["positive" if label == "negative" else label for label in table.column("label").to_pylist()])
    place = table.schema.get_field_index("label")
    pq.write_table(table.set_column(place, "label", flipped).replace_schema_metadata(table.schema.metadata), file)
    with pytest.raises(UserError, match="different test rows"):
        load(comparing(runs=ids))


def test_classes_of_other_names_are_other_rows(record, comparing):
    ids = [record("a"), record("b", labels=("bad", "good"), **{"peft.r": 1})]
    with pytest.raises(UserError, match="different test rows"):
        load(comparing(runs=ids))


@pytest.mark.parametrize("gone", ["never", "deleted", "damaged"])
def test_a_run_without_predictions_is_refused(record, comparing, file_of, gone):
    ids = [record("a"), record("b", predictions=gone != "never")]
    file = file_of(ids[1])
    if gone == "deleted":
        file.unlink()
    if gone == "damaged":
        file.write_bytes(b"nothing")
    with pytest.raises(UserError) as told:
        load(comparing(runs=ids))
    wanted = "holds no predictions of sentexp" if gone == "damaged" else f"Run b ({ids[1][:8]}) holds no predictions"
    assert wanted in str(told.value)


def test_validation_predictions_that_were_not_kept(record, comparing):
    with pytest.raises(UserError, match="no predictions for the validation split"):
        load(comparing(runs=[record("a")], split=EvaluatedSplit.validation))


def test_few_rows_and_one_class_are_refused(record, comparing, file_of):
    with pytest.raises(UserError, match="28 test rows are too few to compare runs: at least 30"):
        load(comparing(runs=[record("a", rows=28)]))
    run_id = record("b", rows=80)
    file = file_of(run_id)
    table = pq.read_table(file)
    pq.write_table(table.filter([label == "negative" for label in table.column("label").to_pylist()]), file)
    with pytest.raises(UserError, match="all 40 test rows are negative, and with one class"):
        load(comparing(runs=[run_id]))
