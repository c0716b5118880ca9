"""The server in this process: limits, the page, MLflow's own paths, a port that is taken. The rest is in slow/."""

import socket

import encoders
import numpy as np
import pytest
from rounding import rounding
from starlette.testclient import TestClient

from sentexp.config import ServeConfig, TrackingBackend, TrackingConfig, from_conf
from sentexp.errors import UserError
from sentexp.export import pyfunc
from sentexp.export.mlflow_model import save_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import read_trained
from sentexp.serving.serve import _listen, build_app
from sentexp.tracking.predictions import file_name, read_predictions

NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)


@pytest.fixture(scope="module")
def served(finished, tmp_path_factory):
    """Return a client of a server that takes 4 texts and 1,000 bytes, and the run's result."""
    result = finished("peft=lora")
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(resolve_run(str(result.folder), NONE, "outputs"), folder)
    config = from_conf(ServeConfig, tracking=NONE, run=str(result.folder), max_rows=4, max_bytes=1000)
    with TestClient(build_app(folder, config, "my run")) as client:
        yield client, result


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"text": "a warm film"}, {"text": " dull "}]},
        {"dataframe_split": {"columns": ["text"], "data": [["a warm film"], ["dull"]]}},
        {"inputs": {"text": ["a warm film", "dull"]}},
        {"instances": [{"text": "a warm film"}, {"text": "dull"}]},
        {"dataframe_records": [{"text": "a warm film"}, {"text": "dull"}], "params": {"calibrated": True}},
    ],
)
def test_every_form_of_a_request_is_answered(body, served):
    client, result = served
    said = client.post("/invocations", json=body)
    assert said.status_code == 200, said.text
    scorer = Scorer(read_trained(result.weights))
    wanted = scorer.probabilities(["a warm film", "dull"], calibrated="params" in body)
    rows = said.json()["predictions"]
    found = [[row["probability_negative"], row["probability_positive"]] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert [row["label"] for row in rows] == [scorer.labels[best] for best in wanted.argmax(1)]


@pytest.mark.parametrize("kind", ["roberta", "deberta-v2"])
def test_an_encoder_is_served(kind, finished, texts, tmp_path):
    encoders.write_encoder(tmp_path / "base", kind)
    result = finished(f"model.path={tmp_path / 'base'}")
    save_model(resolve_run(str(result.folder), NONE, "outputs"), tmp_path / "model")
    config = from_conf(ServeConfig, tracking=NONE, run=str(result.folder))
    with TestClient(build_app(tmp_path / "model", config, "my run")) as client:
        answered = client.post("/invocations", json={"inputs": texts})
    found = [[row["probability_negative"], row["probability_positive"]] for row in answered.json()["predictions"]]
    said = read_predictions(result.folder / file_name("test")).probabilities
    np.testing.assert_allclose(found, said, rtol=0, atol=rounding())


def test_csv_is_answered(served):
    said = served[0].post("/invocations", content="text\na warm film\n", headers={"content-type": "text/csv"})
    assert len(said.json()["predictions"]) == 1


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        ('{"dataframe_records": [{"text": ""}]}', 400, "Row 1 has no text"),
        ('{"dataframe_records": [{"words": "x"}]}', 400, "text"),
        ('{"dataframe_records": [%s{"text": "x"}]}' % ('{"text": "x"}, ' * 4), 400, "There are 5 texts, and 4 are"),
        ('{"dataframe_records": [{"text": "%s"}]}' % ("x" * 2000), 413, "larger than 1,000 bytes"),
        ("no json", 400, "The request is not JSON"),
        ("", 400, "The request is empty"),
    ],
)
def test_what_cannot_be_answered_is_reported(content, status, sentence, served):
    said = served[0].post("/invocations", content=content, headers={"content-type": "application/json"})
    assert (said.status_code, sentence in said.json()["message"]) == (status, True), said.text


def test_the_page_and_mlflows_own_paths(served):
    client, _ = served
    page = client.get("/")
    assert page.status_code == 200
    assert "my run" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert [client.get(path).status_code for path in ("/health", "/ping", "/version", "/nothing")] == [200] * 3 + [404]


def test_device_and_batch_reach_the_model(finished, tmp_path, monkeypatch):
    result, asked = finished("peft=lora"), []
    save_model(resolve_run(str(result.folder), NONE, "outputs"), tmp_path / "model")
    monkeypatch.setattr(pyfunc, "Scorer", lambda *_, **keys: asked.append(keys) or Scorer(read_trained(result.weights)))
    config = from_conf(ServeConfig, tracking=NONE, run=str(result.folder), accelerator="cpu", max_tokens=77)
    build_app(tmp_path / "model", config, "my run")
    assert asked == [{"accelerator": "cpu", "max_tokens": 77}]


def test_a_port_that_is_taken_is_reported():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"host=127.0.0.1 port={port} cannot be used .* port=0"):
            _listen("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot be used"):
        _listen("no.such.host.invalid", 0)


def test_it_listens_on_loopback_unless_told_otherwise():
    assert from_conf(ServeConfig, tracking=NONE, run="x").host == "127.0.0.1"
    with pytest.raises(UserError, match="port=70000 must be at least 0 and at most 65535"):
        from_conf(ServeConfig, tracking=NONE, run="x", port=70000)
