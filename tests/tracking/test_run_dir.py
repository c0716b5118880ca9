"""The folder of a run: one process at a time, and what outlives it."""

import pytest

from sentexp.errors import UserError
from sentexp.tracking.run_dir import RunDir


def test_the_same_run_in_two_processes_is_refused(tmp_path):
    with (
        RunDir(tmp_path / "run"),
        pytest.raises(UserError, match="in progress in another process"),
        RunDir(tmp_path / "run"),
    ):
        pass
    with RunDir(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output_dir=.*file cannot be written"), RunDir(tmp_path / "file" / "run"):
        pass


def test_facts_outlive_the_process_until_they_are_forgotten(tmp_path):
    with RunDir(tmp_path) as folder:
        folder.save_state(run_id="a")
        folder.save_state(fits={"batch_size": 2})
    with RunDir(tmp_path) as folder:
        assert folder.state == {"run_id": "a", "fits": {"batch_size": 2}}
        folder.clear_state()
    with RunDir(tmp_path) as folder:
        assert folder.state == {}


def test_a_repeated_step_counts_once_and_a_cut_line_not_at_all(tmp_path):
    with RunDir(tmp_path) as folder:
        folder.save_state(run_id="a")
        folder.log_metrics({"loss": 3.0}, 1)
        folder.log_metrics({"loss": 2.0}, 2)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "lo')
    with RunDir(tmp_path) as folder:
        folder.log_metrics({"loss": 1.0}, 2)
        assert folder.history("loss") == [(1, 3.0), (2, 1.0)]
        folder.clear_state()
    with RunDir(tmp_path) as folder:
        assert folder.history("loss") == [(1, 3.0), (2, 1.0)]  # of the finished run
        folder.save_state(run_id="b")
        assert folder.history("loss") == []


@pytest.mark.parametrize("content", [b'{"run_id": ', b"\xff{}"])
def test_a_damaged_state_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=r"state.json is damaged, .*: remove .*, and give the command again"):
        RunDir(tmp_path).__enter__()
