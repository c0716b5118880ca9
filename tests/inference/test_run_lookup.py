"""Which run `run=` means, and one sentence for what is not a finished run."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from sentexp.config import ModelConfig, ServeConfig, TrackingBackend, TrackingConfig, from_conf, load_config
from sentexp.errors import UserError
from sentexp.inference.run_lookup import chosen_run, resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.saved import find_base, load_trained, read_trained
from sentexp.run.train import train
from sentexp.tracking.store import open_store

NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)


@pytest.fixture
def copy(finished, tmp_path):
    """Return a copy of a finished run's folder that may be damaged."""
    result = finished("peft=lora")
    return shutil.copytree(result.folder, tmp_path / "outputs" / result.identity)


@pytest.fixture
def find(tmp_path):
    """Return a function that finds a run without MLflow."""
    return lambda wanted: resolve_run(str(wanted), NONE, str(tmp_path / "outputs"))


def test_a_run_is_found_by_its_identity_its_beginning_and_its_folders(copy, find):
    for wanted in (copy.name, copy.name[:6], copy, copy / "adapter"):
        found = find(wanted)
        assert found.trained.identity == copy.name
        assert found.trained.folder == copy / "adapter"
        assert found.run is None


def test_weights_are_found_wherever_they_were_taken(copy, find, tmp_path):
    moved = shutil.copytree(copy / "adapter", tmp_path / "mine")
    assert find(moved).trained.identity == copy.name


def test_what_is_no_run_is_reported(copy, find):
    with pytest.raises(UserError, match=r"run=abcdef is not a run in nowhere .* nor a folder in output_dir="):
        find("abcdef")
    with pytest.raises(UserError, match=r"run=abc is not a run's name, and too short .*: give 4 letters or more"):
        find("abc")
    with pytest.raises(UserError, match=r"run=some/where does not exist"):
        find("some/where")
    shutil.copytree(copy, copy.with_name(f"{copy.name[:15]}?"))
    with pytest.raises(
        UserError, match=rf"run={copy.name[:8]} is the name or the beginning of 2 runs: .*: give more of one"
    ):
        find(copy.name[:8])
    assert find(copy.name).trained.identity == copy.name


def test_an_unfinished_run_is_reported(copy, find):
    (copy / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not finished: give the command of that run again, which resumes it"):
        find(copy.name)
    (copy / "state.json").unlink()
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match=r"is not finished"):
        find(copy)


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "model.PKL"])
def test_a_pickle_is_refused(name, copy, find):
    (copy / "adapter" / name).write_bytes(b"")
    for wanted in (copy, copy / "adapter", copy / "adapter" / name):
        with pytest.raises(UserError, match=rf"{name} is a pickle, which can run any code when it is loaded"):
            find(wanted)


def test_facts_that_are_missing_or_of_another_version_are_reported(copy, find):
    file = copy / "adapter" / "sentexp.json"
    facts = json.loads(file.read_text())
    del facts["revision"]
    file.write_text(json.dumps(facts))
    with pytest.raises(
        UserError, match=r"cannot be used \(KeyError: 'revision'\): another version of sentexp wrote it"
    ):
        find(copy)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"cannot be used \(TypeError"):
        find(copy)
    file.unlink()
    with pytest.raises(UserError, match=r"holds no sentexp.json"):
        find(copy)


def test_a_base_that_is_gone_or_another_is_refused_and_one_that_has_moved_is_named(quick_words, tmp_path):
    tiny = load_config("model=tiny").model
    base = shutil.copytree(locate_backbone(tiny).folder, tmp_path / "base")
    result = train(load_config(*quick_words, f"model.path={base}", f"output_dir={tmp_path}", "tracking=none"))
    trained = read_trained(result.weights)
    wanted = Scorer(trained).probabilities(["fine"])
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"The base model of run \w+ is no longer at .*base: put it back, or name its"):
        find_base(trained)
    assert (Scorer(trained, str(moved)).probabilities(["fine"]) == wanted).all()
    other = from_conf(ModelConfig, name="other", random=replace(tiny.random, hidden_size=32))
    shutil.copytree(locate_backbone(other).folder, base)
    with pytest.raises(UserError, match=r"has the revision \w{12}, and run \w+ was trained on \w{12}: its weights fit"):
        find_base(trained)


def test_weights_that_are_damaged_or_missing_are_reported(copy, find, finished, tmp_path):
    trained = find(copy).trained
    arguments = find_base(trained), trained.precision, Scorer(trained).device
    (copy / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model.safetensors: copy the whole folder"):
        load_trained(trained, *arguments)
    whole = shutil.copytree(finished("peft=full").weights, tmp_path / "model")
    from safetensors.torch import load_file, save_file

    state = load_file(whole / "model.safetensors")
    del state["score.weight"]
    save_file(state, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds no classification head, so its answers would be random"):
        Scorer(read_trained(whole))


@pytest.fixture(scope="module")
def swept(quick_words, tmp_path_factory, empty_store):
    """Return tracking and folder of a sweep of three runs, whose best on validation is the worst on test."""
    folder = tmp_path_factory.mktemp("swept")
    uri = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=uri, system_metrics=False)
    store = open_store(tracking)
    parent = store.client.create_run(store.experiment, run_name="sweep seed=1,2,3", tags={"sweep.identity": "s"})
    words = [*quick_words, f"tracking.uri={uri}", "tracking.system_metrics=false", f"output_dir={folder}"]
    results = []
    for seed, validation in ((1, 0.5), (2, 0.9), (3, 0.7)):
        given = [f"seed={seed}", f"sweep.name='seed={seed}'", f"sweep.parent={parent.info.run_id}"]
        results.append(train(load_config(*words, *given)))
        store.client.log_metric(results[-1].run_id, "best/accuracy", validation, step=1000)
        store.client.log_metric(results[-1].run_id, "test/accuracy", 1 - validation, step=1000)
    return tracking, str(folder), results


@pytest.mark.slow
def test_recorded_runs_are_found_by_either_id(swept):
    tracking, folder, results = swept
    for wanted in (results[0].run_id, results[0].run_id[:8], results[0].identity, results[0].identity[:8]):
        found = resolve_run(wanted, tracking, folder)
        assert found.trained.run_id == found.run.info.run_id == results[0].run_id
        assert found.name == f"seed=1 ({results[0].identity})"
    assert resolve_run(str(results[0].weights), tracking, folder).run.info.run_id == results[0].run_id
    assert resolve_run(results[0].identity, tracking, "nowhere").trained.identity == results[0].identity


def test_the_best_run_is_that_of_validation_never_of_test(swept):
    tracking, folder, results = swept
    found = resolve_run("best", tracking, folder)
    assert found.trained.identity == results[1].identity
    assert found.name.endswith("validation/accuracy 0.9000, the best of sweep seed=1,2,3")


def test_a_recorded_run_that_failed_is_reported(swept):
    tracking, folder, _ = swept
    store = open_store(tracking)
    failed = store.client.create_run(store.experiment, run_name="seed=9", tags={"identity": "feedfacefeedface"})
    store.client.set_terminated(failed.info.run_id, "FAILED")
    with pytest.raises(UserError, match=r"run=feedface \(seed=9\) is FAILED, not FINISHED, so it has no weights"):
        resolve_run("feedface", tracking, folder)
    store.client.delete_run(failed.info.run_id)


def test_a_run_is_found_by_the_name_that_mlflow_shows(swept):
    tracking, folder, results = swept
    assert resolve_run("seed=2", tracking, folder).trained.identity == results[1].identity
    store = open_store(tracking)
    failed = store.client.create_run(store.experiment, run_name="seed=2", tags={"identity": "feedfacefeedface"})
    store.client.set_terminated(failed.info.run_id, "FAILED")
    assert resolve_run("seed=2", tracking, folder).trained.identity == results[1].identity
    store.client.set_terminated(failed.info.run_id, "FINISHED")
    with pytest.raises(
        UserError, match=r"run=seed=2 is the name or the beginning of 2 runs: feedfacefeedface \(seed=2"
    ):
        resolve_run("seed=2", tracking, folder)
    store.client.delete_run(failed.info.run_id)


def test_the_latest_run_is_the_one_that_ended_last(swept, copy):
    tracking, folder, results = swept
    found = resolve_run("latest", tracking, folder)
    assert found.name == f"seed=3 ({results[2].identity}), the latest finished run"
    os.utime(copy / "result.json", (2**33, 2**33))
    assert resolve_run("latest", tracking, str(copy.parent)).trained.identity == copy.name
    os.utime(copy / "result.json", (1, 1))
    assert resolve_run("latest", tracking, str(copy.parent)).trained.identity == results[2].identity


def test_a_command_without_a_run_takes_the_latest_and_says_so(swept, capsys):
    tracking, folder, results = swept
    config = from_conf(ServeConfig, tracking=tracking, output_dir=folder)
    assert chosen_run(config).name == f"seed=3 ({results[2].identity})"
    message = capsys.readouterr().err
    assert message == f"No run= is given, so this is seed=3 ({results[2].identity}), the latest finished run.\n"
    chosen_run(replace(config, run="best"))
    assert not capsys.readouterr().err


def test_a_wrong_name_lists_the_latest_runs_but_not_baselines_and_what_is_unfinished(swept, copy):
    tracking, folder, results = swept
    listed = ", ".join(f"{result.identity} (seed={3 - place})" for place, result in enumerate(results[::-1]))
    for wanted in ("deadbeef", "xyz", "some/where", folder):
        with pytest.raises(UserError) as told:
            resolve_run(wanted, tracking, folder)
        assert str(told.value).endswith(f"; the latest are {listed}.")
    baseline = shutil.copytree(copy, copy.with_name("baseline-0123456789abcdef"))
    (baseline / "result.json").write_text('{"test/accuracy": 0.5}')
    (shutil.copytree(copy, copy.with_name("0" * 16)) / "state.json").write_text("{}")
    for place in "12345":
        shutil.copytree(copy, copy.with_name(place * 16))
        os.utime(copy.with_name(place * 16) / "result.json", (int(place), int(place)))
    with pytest.raises(UserError, match=rf"; the latest are {copy.name}, {'5' * 16}, {'4' * 16}, {'3' * 16}, 2+\.$"):
        resolve_run("deadbeef", NONE, str(copy.parent))


def test_without_a_sweep_the_best_is_the_latest(copy, find, store):
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri=store, system_metrics=False)
    assert find("best").name == f"{copy.name}, the latest finished run, as there is no sweep"
    assert resolve_run("best", tracking, str(copy.parent)).trained.identity == copy.name
    for wanted in ("best", "latest"):
        with pytest.raises(UserError, match=rf"run={wanted}: no run is finished in sqlite:.*train one"):
            resolve_run(wanted, tracking, "nowhere")
