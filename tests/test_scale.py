"""The measurement of what is large makes a store that sentexp itself reads, and measures every command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scale(monkeypatch):
    """Return the script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("scale", "compare", "data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scale

    yield scale
    for name in ("scale", "compare", "data"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_copies_of_a_run_are_runs(scale, command_line, tmp_path):
    scale.make(tmp_path, "--make-runs", 1, 100)
    scale.make(tmp_path, "--make-copies", 25)
    code, said, _ = command_line("runs", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    assert code == 0
    assert "25 runs in experiment sentexp" in said
    listed = [line for line in said.splitlines() if "finished" in line]
    assert len(listed) == 25
    assert len({re.search("[0-9a-f]{16}", line)[0] for line in listed}) == 25
    assert all(re.search(r"0\.\d{4}", line) for line in listed), "copies have their metrics"
    code, said, _ = command_line(
        "compare", f"runs=[{scale.copy_id(3)[:8]}]", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"
    )
    assert code == 0
    assert "1 run: 100 test rows" in said


def test_measurements_are_added_to_those_of_the_same_machine(scale, monkeypatch, tmp_path):
    file, used = tmp_path / "scale.json", {"wall_seconds": 1.0, "cpu_seconds": 1.0, "peak_gib": 1.0}
    monkeypatch.setitem(scale.PARTS, "runs", lambda folder, share, largest: [("runs", round(share * 100), used)])
    scale.measure([0.1, 1.0], ["runs"], file)
    scale.measure([0.5], ["runs"], file)
    assert sorted(json.loads(file.read_text())["commands"]["runs"]) == ["10", "100", "50"]
    monkeypatch.setattr(scale, "machine", lambda: {"cpu": "another"})
    with pytest.raises(SystemExit, match="figures of another machine"):
        scale.measure([0.5], ["runs"], file)


@pytest.mark.exhaustive
def test_every_command_is_measured_at_two_sizes(tmp_path, command_environment):
    file = tmp_path / "scale.json"
    words = [sys.executable, str(BENCHMARKS / "scale.py"), "--shares", "0.0001", "0.001", "--output", str(file)]
    done = subprocess.run(words, env=command_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())["commands"]
    assert len(found) == 7
    for command, by_size in found.items():
        assert len(by_size) == 2 or command.startswith("compare, 100 rows"), command
        assert all(used["wall_seconds"] > 0 and used["peak_gib"] > 0 for used in by_size.values())
        assert command in done.stdout
