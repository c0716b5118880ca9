"""Every command on a CUDA GPU, from a run to what it is used for."""

import csv
import json

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from rounding import drift, rounding, smooth
from starlette.testclient import TestClient

from sentexp.config import ServeConfig, TrackingBackend, TrackingConfig, from_conf
from sentexp.export.mlflow_model import save_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.serving.serve import build_app
from sentexp.tracking.predictions import file_name, read_predictions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

ON_GPU = "trainer.accelerator=gpu"
NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)
STEADY = ("optim.eps=1e-2", "optim.lr=1e-2", "peft.dropout=0.0", "trainer.monitor=validation/loss")
ANSWERS = ("task=causal_lm", "task.label_words=[bad,good]", "task.template=auto")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("extra", [[], ["peft=qlora"], ["peft=dora", *ANSWERS]], ids=["lora", "qlora", "answers"])
def test_a_run_of_recorded_steps_is_the_run_of_usual_ones(train, tmp_path, capsys, precision, extra):
    given = ("peft=lora", *extra, *STEADY, "trainer.max_epochs=8", "baseline=false", f"trainer.precision={precision}")
    found = {
        graphs: train(*given, ON_GPU, f"trainer.cuda_graphs={graphs}", f"output_dir={tmp_path / graphs}")
        for graphs in ("true", "false")
    }
    assert "CUDA graphs are off" not in capsys.readouterr().out
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    tolerance = rounding(dtype=dtype, terms=1) + drift(1e-2, 32, 1e-2, terms=1)
    assert smooth(found["true"].metrics) == pytest.approx(smooth(found["false"].metrics), abs=tolerance)


@pytest.mark.parametrize(
    ("method", "precision", "graphs"),
    [
        (["peft=lora"], "fp32", "true"),
        (["peft=lora"], "bf16", "true"),
        (["peft=lora"], "bf16", "false"),
        (["peft=qlora", *ANSWERS], "bf16", "true"),
    ],
)
def test_every_run_of_a_fused_sweep_is_what_it_is_alone(sentexp, tmp_path, method, precision, graphs):
    axes = ("peft.r=2,4", "optim.weight_decay=0,0.1", "peft.dropout=0.2")
    words = ("--multirun", *method, *axes, *STEADY[:2], *STEADY[3:], "trainer.max_epochs=4", "tracking=none", ON_GPU)
    words = (*words, f"trainer.precision={precision}", "trainer.eval_steps=1000", "baseline=false")
    code, output, errors = sentexp(*words, "output_dir=fused", f"trainer.cuda_graphs={graphs}")
    assert code == 0, errors
    assert "Up to 4 of them read the backbone in one pass" in output
    assert "CUDA graphs are off" not in output
    apart = ("output_dir=alone", "hydra/launcher=sequential", "trainer.cuda_graphs=false")
    code, _, errors = sentexp(*words, *apart)
    assert code == 0, errors
    fused, alone = (
        {
            file.parent.name: smooth(json.loads(file.read_text())["metrics"])
            for file in tmp_path.glob(f"{way}/*/result.json")
        }
        for way in ("fused", "alone")
    )
    assert len(fused) == 4
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    tolerance = rounding(dtype=dtype, terms=1) + drift(1e-2, 32, 1e-2, terms=1)
    for name, metrics in alone.items():
        assert fused[name] == pytest.approx(metrics, abs=tolerance)


def test_runs_of_a_sweep_replay_their_own_graphs_where_nothing_else_is_said(sentexp, tmp_path):
    code, output, errors = sentexp("--multirun", "peft=lora", "peft.r=2,4", "trainer.max_epochs=2", ON_GPU)
    assert code == 0, errors
    assert "train together" not in output
    assert len(list(tmp_path.glob("outputs/*/result.json"))) == 2


def test_a_run_is_predicted_evaluated_exported_registered_and_served(sentexp, command_line, tmp_path, reviews, store):
    assert sentexp("peft=lora", "plots=false", ON_GPU)[0] == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    uri = f"tracking.uri={store}"
    said = read_predictions(folder / file_name("test"))
    lines = [line.split("\t") for line in (reviews / "test.tsv").read_text().splitlines()[1:]]
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text, _ in lines)])
    for words in (
        ("predict", f"run={folder}", "input=texts.csv", "output=said.csv", uri),
        ("evaluate", f"run={folder}", "data=sst2", f"data.path={reviews}", "data.splits.test=test", uri),
        ("export", f"run={folder}", "format=peft", uri),
        ("export", f"run={folder}", "format=merged", uri),
        ("export", f"run={folder}", "format=onnx", uri),
        ("register", f"run={folder}", "name=reviews", uri),
    ):
        code, output, errors = command_line(*words)
        assert code == 0, (words, output, errors)
    with (tmp_path / "said.csv").open() as file:
        found = [[float(row[f"probability_{label}"]) for label in said.labels] for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, said.probabilities, rtol=0, atol=rounding())
    model = tmp_path / "served"
    save_model(resolve_run(str(folder), NONE, "outputs"), model)
    with TestClient(build_app(model, from_conf(ServeConfig, tracking=NONE, run=str(folder)), "run")) as client:
        answer = client.post("/invocations", json={"inputs": {"text": ["a warm film", "dull"]}})
    assert answer.status_code == 200, answer.text
    assert len(MlflowClient(store).search_model_versions("name='reviews'")) == 1


def test_a_killed_run_goes_on_from_its_checkpoint(train, tmp_path, interrupted_at):
    given = ("peft=lora", *STEADY, "trainer.max_epochs=4", "trainer.save_steps=5", "baseline=false", ON_GPU)
    whole = train(*given, f"output_dir={tmp_path / 'whole'}")
    with interrupted_at(13):
        train(*given, f"output_dir={tmp_path / 'killed'}")
    resumed = train(*given, f"output_dir={tmp_path / 'killed'}")
    tolerance = rounding() + drift(1e-2, 16, 1e-2)
    assert smooth(resumed.metrics) == pytest.approx(smooth(whole.metrics), abs=tolerance)


def test_out_of_memory_halves_the_batches(train, tmp_path, capsys):
    rows = [
        f"a film number {number} that I have seen on a rainy day in May, and liked\t{number % 2}"
        for number in range(4096)
    ]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.tsv").write_text(
            "\n".join(["sentence\tlabel", *(rows if split == "train" else rows[:8])])
        )
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((1 << 30) / torch.cuda.get_device_properties(0).total_memory)
    try:
        result = train(
            "peft=lora",
            f"data.path={tmp_path}",
            "trainer.batch_size=4096",
            "trainer.eval_batch_size=8",
            "baseline=false",
            ON_GPU,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory: starting again with batches of" in capsys.readouterr().out
    assert result.metrics["train/steps"] == 1


@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_answers_are_learned_by_other_methods(train, method):
    result = train(f"peft={method}", *ANSWERS, "baseline=false", "trainer.precision=bf16", ON_GPU)
    assert result.metrics["train/steps"] == 4
