"""The result of a run in Python: its predictions and pictures, and the names that the package offers."""

import shutil
import subprocess
import sys

import pytest

import sentexp
from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.run.train import train as train_run


def test_the_package_offers_training_and_nothing_else():
    assert sentexp.train is train_run
    assert callable(sentexp.load_config)
    assert sentexp.load_config("model=tiny").model.name == load_config("model=tiny").model.name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = sentexp.trian


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, sentexp; print([name for name in ('torch', 'hydra', 'sentexp.config') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_result_knows_its_predictions_and_pictures(train):
    result = train("peft=lora", "plots=true")
    table = result.predictions()
    assert (table["label"].astype(str) == table["predicted"].astype(str)).mean() == result.metrics["test/accuracy"]
    assert [f"p.{label}" in table for label in result.labels] == [True, True]
    assert len(result.predictions("validation")) == 8
    assert set(result.plots()) == {"confusion_matrix", "data_audit", "learning_curve", "reliability"}
    assert all(file.is_file() for file in result.plots().values())
    with pytest.raises(UserError, match="split=train must be one of validation, test"):
        result.predictions("train")
    shutil.rmtree(result.folder / "predictions")
    with pytest.raises(UserError, match="does not exist"):
        result.predictions()
