"""A server over a run that reads pairs: a second column in every form of a request, and on the page."""

import csv

import numpy as np
import pytest
from starlette.testclient import TestClient

from sentexp.config import ServeConfig, TrackingBackend, TrackingConfig, from_conf
from sentexp.export.mlflow_model import save_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.serving.invocations import CSV, JSON
from sentexp.serving.serve import build_app
from sentexp.tracking.predictions import file_name, read_predictions

NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)


@pytest.fixture(scope="module")
def served(paired, tmp_path_factory):
    """Return a client of a server, and the run's result."""
    result = paired("peft=lora")
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(resolve_run(str(result.folder), NONE, "outputs"), folder)
    config = from_conf(ServeConfig, tracking=NONE, run=str(result.folder))
    with TestClient(build_app(folder, config, "my run")) as client:
        yield client, result


@pytest.fixture(scope="module")
def rows(aspects):
    """Return the test rows as (text, second text)."""
    with (aspects / "test.csv").open(newline="") as stream:
        return [(row["sentence"], row["aspect"]) for row in csv.DictReader(stream)]


def forms(rows):
    records = [{"text": text, "text_pair": other} for text, other in rows]
    texts, others = map(list, zip(*rows, strict=True))
    yield {"dataframe_records": records}
    yield {"instances": records}
    yield {"inputs": {"text": texts, "text_pair": others}}
    yield {"dataframe_split": {"columns": ["text_pair", "text"], "data": [[other, text] for text, other in rows]}}


def test_every_form_is_answered_as_the_run_said(served, rows):
    client, result = served
    wanted = read_predictions(result.folder / file_name("test")).probabilities
    for body in forms(rows):
        said = client.post("/invocations", json=body)
        assert said.status_code == 200, said.text
        found = [[row["probability_bad"], row["probability_good"]] for row in said.json()["predictions"]]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len({tuple(row) for row in wanted[:2].tolist()}) == 2


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        ('{"inputs": ["x"]}', JSON, "Row 1 has no text_pair"),
        ('{"dataframe_records": [{"text": "x"}]}', JSON, "Row 1 has no text_pair"),
        ('{"dataframe_records": [{"text": "x", "text_pair": " "}]}', JSON, "Row 1 has no text_pair"),
        ('{"inputs": {"text": ["x", "y"], "text_pair": ["z"]}}', JSON, "as many values of text_pair as of text"),
        ("text\nx\n", CSV, "must have one column text_pair; its columns are text"),
        ("", JSON, '"text_pair": "the cast"'),
    ],
)
def test_a_missing_second_text_is_reported(content, kind, sentence, served):
    said = served[0].post("/invocations", content=content, headers={"content-type": kind})
    assert (said.status_code, sentence in said.json()["message"]) == (400, True), said.text


def test_csv_is_answered(served):
    said = served[0].post("/invocations", content="text_pair,text\nsun,warm\n", headers={"content-type": CSV})
    assert len(said.json()["predictions"]) == 1


def test_the_page_asks_for_both(served):
    assert '<textarea id="pair"' in served[0].get("/").text
