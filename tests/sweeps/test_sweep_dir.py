"""The folder of a sweep: ends of runs, the best, progress, and when to stop."""

import json
import math
import os
import time

import pytest

from sentexp.sweeps.sweep_dir import CONFIG, Outcome, State, SweepFolder, best_of


def finished(name, objective, earlier=False):
    return Outcome(name=name, state=State.finished, objective=objective, earlier=earlier)


def test_outcomes_are_read_as_they_were_written(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(3, "validation/accuracy", None)
    written = {0: finished("a", 0.5), 2: Outcome(name="c", state=State.failed, error="no")}
    for number, outcome in written.items():
        folder.write(number, outcome)
    read = folder.outcomes()
    assert read[0] == written[0]
    assert (read[2].state, read[2].error, math.isnan(read[2].objective)) == (State.failed, "no", True)
    assert list(read) == [0, 2]


def test_progress_counts_what_was_finished_before_and_leaves_it_out_of_the_pace(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(3, "validation/loss", None)
    folder.write(0, finished("a", 0.5, earlier=True))
    assert math.isnan(folder.progress().seconds_left)
    folder.write(1, finished("b", 0.4))
    progress = folder.progress()
    assert (progress.ended, progress.total, progress.failed) == (2, 3, 0)
    assert progress.best.name == "b"
    assert progress.seconds_left >= 0


@pytest.mark.parametrize(
    ("total", "ages", "left"),
    [
        (2, [100.0, 100.0], 0.0),  # both began together: the other one ends now
        (2, [100.0, 60.0], 40.0),
        (4, [100.0, 100.0], 100.0),  # two more follow in two places
        (5, [100.0, 50.0], 175.0),  # half a run and three whole ones in two places
        (3, [100.0], 200.0),  # one after the other
    ],
)
def test_the_time_left_counts_what_runs_under_way_have_behind_them(tmp_path, total, ages, left):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(total, "validation/accuracy", None)
    for number, age in enumerate(ages):
        folder.of(number).mkdir()
        (folder.of(number) / CONFIG).touch()
        os.utime(folder.of(number) / CONFIG, (time.time() - age,) * 2)
    facts = folder._facts()
    (folder.path / "sweep.json").write_text(json.dumps(facts | {"started": time.time() - 100}))
    outcome = finished("a", 0.5)
    outcome.metrics["seconds"] = 100.0
    folder.write(0, outcome)
    assert folder.progress().seconds_left == pytest.approx(left, abs=5)


def test_too_many_failures_stop_the_sweep(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(3, "validation/accuracy", 2)
    folder.write(0, Outcome(name="a", state=State.failed))
    assert not folder.is_stopped()
    folder.write(1, Outcome(name="b", state=State.killed))
    assert folder.is_stopped()


def test_the_best_is_finished_and_the_first_of_equals():
    runs = [
        Outcome(name="x", state=State.failed, objective=1.0),
        finished("a", 0.5),
        finished("b", 0.7),
        finished("c", 0.7),
    ]
    runs.append(finished("d", math.nan))
    assert best_of(runs, "validation/accuracy").name == "b"
    assert best_of(runs, "validation/loss").name == "a"
    assert best_of(runs[:1], "validation/loss") is None


def test_sweeps_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path):
    folders = [SweepFolder(tmp_path / "12-00-00") for _ in range(3)]
    for folder in folders:
        folder.begin(["a"], "validation/accuracy", None)
    assert [folder.path.name for folder in folders] == ["12-00-00", "12-00-00-2", "12-00-00-3"]
