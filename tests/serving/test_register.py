"""The gate of the registry: an alias moves to a significantly better version on the same rows, or by force."""

import shutil
from dataclasses import replace
from pathlib import Path

import encoders
import numpy as np
import pytest
from rounding import rounding

from sentexp.config import EvaluatedSplit, RegisterConfig, TrackingBackend, TrackingConfig, from_conf, load_config
from sentexp.errors import UserError
from sentexp.export.mlflow_model import read_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import read_trained
from sentexp.run.train import train
from sentexp.serving import register as module
from sentexp.serving.register import register
from sentexp.tracking.store import open_store


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_words, many_reviews):
    """Return words for runs of 60 validation rows in a store of their own, and what names that store."""
    folder = tmp_path_factory.mktemp("registry")
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=f"sqlite:///{folder / 'mlflow.db'}")
    words = [*quick_words, f"data.path={many_reviews}", f"tracking.uri={tracking.uri}", f"output_dir={folder / 'runs'}"]
    return [*words, "tracking.system_metrics=false"], tracking


@pytest.fixture(scope="module")
def good(place):
    """Return a run that learns."""
    return train(load_config(*place[0], "trainer.max_epochs=6"))


@pytest.fixture(scope="module")
def bad(place):
    """Return a run that learns nothing."""
    return train(load_config(*place[0], "optim.lr=1e-9"))


@pytest.fixture
def ask(place):
    """Return a function that registers a run."""

    def registered(result, name, **keys):
        return register(
            from_conf(RegisterConfig, tracking=place[1], run=result.identity, name=name, resamples=200, **keys)
        )

    return registered


def holder(place, name, alias="champion"):
    return open_store(place[1]).client.get_model_version_by_alias(name, alias)


@pytest.mark.slow
def test_the_better_run_takes_the_alias_and_the_worse_does_not(place, good, bad, ask, capsys):
    assert ask(bad, "reviews") == "1"
    assert holder(place, "reviews").run_id == bad.run_id
    assert ask(good, "reviews") == "2"
    assert holder(place, "reviews").run_id == good.run_id
    told = capsys.readouterr().out
    assert "reviews has no champion yet." in told
    assert "on the same 60 validation rows" in told
    assert "which is significantly better" in told
    with pytest.raises(UserError, match=r"does not become reviews@champion: .* force=true"):
        ask(bad, "reviews")
    assert "which is not significantly better" in capsys.readouterr().out
    assert holder(place, "reviews").run_id == good.run_id
    assert ask(bad, "reviews", force=True) == "1"  # the version that it has
    version = holder(place, "reviews")
    assert version.run_id == bad.run_id
    assert version.tags["gate"].startswith("forced: accuracy on the same 60 validation rows")


def test_what_has_the_alias_is_not_registered_again(place, good, ask, capsys):
    assert ask(good, "twice") == ask(good, "twice") == "1"
    assert "twice@champion is version 1, of this run, already." in capsys.readouterr().out
    assert len(open_store(place[1]).client.search_model_versions("name='twice'")) == 1


def test_runs_that_differ_in_their_seed_alone_are_compared_with_each_other(place, ask, capsys):
    first, second = (train(load_config(*place[0], "trainer.max_epochs=2", f"seed={seed}")) for seed in (1, 2))
    ask(first, "seeds", metric="loss")
    ask(second, "seeds", metric="loss", force=True)
    values = [f"{result.metrics['best/loss']:.4f}" for result in (second, first)]
    assert values[0] != values[1]
    assert f"loss on the same 60 validation rows: {values[0]} against {values[1]} of" in capsys.readouterr().out


def test_equal_runs_are_not_told_apart(place, good, ask):
    twin = train(load_config(*place[0], "trainer.max_epochs=6", "trainer.log_every_n_steps=7", "seed=1"))
    ask(good, "equal")
    difference = abs(twin.metrics["best/accuracy"] - good.metrics["best/accuracy"])
    assert difference < 0.1
    with pytest.raises(UserError, match="does not become equal@champion"):
        ask(twin, "equal")
    assert ask(twin, "equal", alias="challenger") == "2"


def test_other_rows_cannot_be_compared(place, good, ask, capsys, reviews):
    other = train(load_config(*place[0], "data.validation_subset=40"))
    ask(good, "rows")
    with pytest.raises(UserError, match="does not become rows@champion"):
        ask(other, "rows")
    assert "were measured on different validation rows" in capsys.readouterr().out


def test_the_model_is_checked_and_found_by_its_name(place, good, ask, texts, capsys):
    ask(good, "found", split=EvaluatedSplit.test)
    for wanted in ("models:/found@champion", "models:/found/1"):
        found = resolve_run(wanted, place[1], "nowhere")
        assert found.trained.identity == good.identity
    for wanted in ("models:/found@nobody", "models:/found/9", "models:/nothing@champion", "models:/found"):
        with pytest.raises(UserError, match=rf"run={wanted} is not a version of a registered model"):
            resolve_run(wanted, place[1], "nowhere")


def test_a_model_that_fails_its_check_is_not_registered(place, quick_words, ask, monkeypatch):
    fresh = train(load_config(*place[0], "seed=5"))
    monkeypatch.setattr(module, "expected", lambda scorer: (["good"], np.array([[0.5, 0.25]], np.float32)))
    with pytest.raises(UserError, match="differ from the run's by"):
        ask(fresh, "unchecked")
    client = open_store(place[1]).client
    assert client.search_model_versions("name='unchecked'") == []


@pytest.mark.slow
def test_an_encoder_is_registered_with_its_base(place, ask, texts, tmp_path):
    encoders.write_encoder(tmp_path / "base", "modernbert")
    result = train(load_config(*place[0], f"model.path={tmp_path / 'base'}"))
    wanted = Scorer(read_trained(result.weights)).probabilities(texts)
    assert ask(result, "encoder", carry_base=True) == "1"
    shutil.rmtree(tmp_path / "base")
    folder = Path(open_store(place[1]).client.download_artifacts(result.run_id, "model_with_base", str(tmp_path)))
    np.testing.assert_allclose(read_model(folder)(texts), wanted, rtol=0, atol=rounding())
    assert "under a classification head" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_run_in_16_bits_is_checked_in_them(place, ask, capsys):
    run_of_16_bits = train(load_config(*place[0], "trainer.precision=bf16"))
    ask(run_of_16_bits, "halved")
    assert "differ from the run's by 0.0e+00 at most (allowed: 0.001)" in capsys.readouterr().out
    client = open_store(place[1]).client
    card = client.download_artifacts(run_of_16_bits.run_id, "model/README.md")
    assert "an adapter trained on the base model tiny" in Path(card).read_text()
    assert 'mlflow.pyfunc.load_model("<this folder>")' in Path(card).read_text()


def test_a_run_outside_mlflow_is_reported(good, tmp_path):
    elsewhere = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(UserError, match=r"register takes the model of an MLflow run, and that of \w+ is not in"):
        register(from_conf(RegisterConfig, tracking=elsewhere, run=str(good.folder), name="x"))
    with pytest.raises(UserError, match=r"register writes to MLflow's registry, and tracking=none has none"):
        from_conf(RegisterConfig, tracking=replace(elsewhere, backend=TrackingBackend.none), run="x", name="x")
    with pytest.raises(UserError, match="register needs the name of a model"):
        from_conf(RegisterConfig, tracking=elsewhere, run="x")
