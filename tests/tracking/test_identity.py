"""Identity: what a run computes, not where it is written down; runs that an earlier release recorded are found."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from sentexp.config import load_config
from sentexp.data.splits import load_examples
from sentexp.run import train
from sentexp.run.baselines import missing_baselines
from sentexp.run.inputs import prepare_inputs, resolve_inputs, run_identity
from sentexp.tracking import identity as module
from sentexp.tracking.identity import fingerprint

EARLIER = json.loads(Path(__file__).with_name("earlier_store.json").read_text())
"""What a store held that the last release wrote whose identities were digests of its sources."""


def identity(config):
    return fingerprint(config, load_examples(config.data).digest(), "revision")


def test_bookkeeping_does_not_change_an_identity(config, reviews, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(reviews, moved)
    same = identity(config())
    for override in (
        f"data.path={moved}",
        "output_dir=x",
        "trainer.save_steps=3",
        "tracking.experiment=y",
        "trainer.log_every_n_steps=9",
    ):
        assert identity(config(override)) == same, override


def test_everything_else_does(config, reviews, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(reviews, changed)
    with (changed / "train.tsv").open("a") as file:
        file.write("one more film\t1\n")
    settings = (
        "seed=1",
        "peft.r=4",
        "peft=dora",
        "optim.lr=2",
        "trainer.batch_size=4",
        f"data.path={changed}",
        "peft=head",
        "peft=none",
    )
    identities = [identity(config(override)) for override in settings]
    assert len({*identities, identity(config())}) == len(settings) + 1


def test_a_table_is_the_same_run_by_either_name(tmp_path):
    table = tmp_path / "films.csv"
    table.write_text("text,label\n" + "".join(f"film {row},{row % 2}\n" for row in range(40)))
    words = ("model=tiny", f"data.path={table}")
    assert identity(load_config("data=file", *words)) == identity(load_config("data=csv", *words))
    assert load_config("data=file", *words).data.title == "films"


def test_what_selects_a_checkpoint_is_resolved_by_the_task(tmp_path):
    table = tmp_path / "films.csv"
    table.write_text("text,label\n" + "".join(f"film {row},{row / 4}\n" for row in range(40)))
    words = ("model=tiny", "data=csv", f"data.path={table}", "data.labels=null")
    for own, metric in (([], "accuracy"), (["task=causal_lm"], "accuracy"), (["task.loss=regression"], "rmse")):
        usual, named = load_config(*words, *own), load_config(*words, *own, f"trainer.monitor=validation/{metric}")
        assert usual.trainer.monitor == f"validation/{metric}"
        assert usual == named


def test_another_version_of_the_numerics_is_another_run(config, reviews, monkeypatch):
    before = identity(config())
    monkeypatch.setattr(module, "NUMERICS_VERSION", "another")
    assert identity(config()) != before


CARVED = ["data=csv", "data.path=films.csv", "data.label=mood"]
IDENTITIES = {
    "": "d58d5869ef4b675c",
    "peft=qlora peft.r=8 seed=7": "6d95c8b377cf5552",
    "peft=full optim.lr=1e-5": "d885a23dc6e1d4b1",
    "task=causal_lm task.label_words=[bad,good] task.template=completion": "1b8f0908a7057c14",
    "task=causal_lm peft=none task.shots=4 task.label_words=[bad,good] task.template=auto": "725a3d5a247642b7",
    "peft=ia3 data.train_subset=20 trainer.max_tokens=512": "564754ad23417224",
}
"""Of configurations of one table, by their overrides. Another value makes finished runs unknown to their users."""


@pytest.mark.parametrize("overrides", IDENTITIES)
def test_identities_are_those_of_earlier_releases(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        f"film number {number} is {'good' if number % 3 else 'bad'},{'up' if number % 3 else 'down'}"
        for number in range(60)
    ]
    Path("films.csv").write_text("\n".join(["text,mood", *rows]) + "\n")
    assert run_identity(resolve_inputs(load_config("model=tiny", *CARVED, *overrides.split()))) == IDENTITIES[overrides]


def restore(uri):
    """Write the runs of the earlier release into a store; MLflow gives them other ids."""
    client = MlflowClient(uri)
    experiment_id = client.create_experiment("sentexp", artifact_location=f"{uri.removeprefix('sqlite:///')}-files")
    text = json.dumps(EARLIER)
    for recorded in EARLIER:
        run = client.create_run(experiment_id, tags=recorded["tags"], run_name=recorded["name"])
        text = text.replace(recorded["run_id"], run.info.run_id)
    for recorded in json.loads(text):
        client.log_batch(recorded["run_id"], [Metric(name, value, 0, 0) for name, value in recorded["metrics"].items()])
        for name, content in recorded["artifacts"].items():
            client.log_text(recorded["run_id"], json.dumps(content), name)
        client.set_terminated(recorded["run_id"], recorded["status"])


def test_runs_of_the_release_before_are_found(command_line, reviews, store, tmp_path, monkeypatch):
    restore(store)
    shutil.copytree(reviews, tmp_path / "reviews")
    monkeypatch.setattr(train, "fit_and_test", None)  # nothing may be trained
    words = [
        "model=tiny", "data=sst2", "data.path=reviews", "data.splits.validation=validation", "data.splits.test=test",
        "trainer.batch_size=8", "trainer.precision=fp32", "tracking.system_metrics=false", "trainer.progress_bar=false",
        "baseline=true",
    ]  # fmt: skip
    code, output, errors = command_line("--multirun", "peft.r=2,4", "task.template='{text}'", *words)
    assert code == 0, errors
    assert "2 finished before, 0 to do" in output
    code, output, errors = command_line("task=causal_lm", "task.label_words=[bad,good]", *words)
    assert code == 0, errors
    assert "is finished: this is its result" in output
    code, output, errors = command_line("runs")
    assert code == 0, errors
    known = [recorded["tags"]["identity"] for recorded in EARLIER if "identity" in recorded["tags"]]
    assert len(known) == 3
    assert all(identity in output for identity in known)
    parents = MlflowClient(store).search_runs(["1"], "tags.`sweep.identity` != ''")
    assert len(parents) == 1  # the sweep is the one of before
    assert (
        missing_baselines(
            prepare_inputs(resolve_inputs(load_config("peft.r=2", "task.template='{text}'", *words)), show=False)
        )
        == {}
    )
