"""Notebooks run from top to bottom in a fresh folder, and are stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
TIMEOUT = 1200
"""Seconds for a cell; a sweep of three runs is one."""
KINDS = {"image/png", "text/html"}


def name_of(file):
    return file.stem


def test_there_are_notebooks():
    assert [file.stem for file in NOTEBOOKS] == ["01_first_run", "02_compare_a_sweep", "03_your_own_table"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_valid_and_holds_no_output(file):
    notebook = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None and not cell.metadata for cell in code)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(file, tmp_path, monkeypatch):
    """From top to bottom, on fewer rows; a sweep of the second is a command, and leaves its folder."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more threads would wait for other tests
    text = file.read_text().replace("train_subset=200", "train_subset=96")
    notebook = nbformat.reads(text.replace("test_fraction=0.04", "test_fraction=0.008"), as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(KINDS & output.get("data", {}).keys() for output in outputs)
    assert len(list(tmp_path.glob("multirun/*/*/runs.json"))) == (file.stem == "02_compare_a_sweep")
    assert (tmp_path / "predictions.csv").is_file() == (file.stem == "03_your_own_table")
