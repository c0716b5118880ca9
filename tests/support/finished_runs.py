"""What the tests of serving share: finished runs of the tiny model, trained once for each file of tests."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm
from encoders import write_encoder

from sentexp.config import ExportConfig, ExportFormat, TrackingBackend, TrackingConfig, from_conf, load_config
from sentexp.export import verify
from sentexp.export.command import export
from sentexp.export.exporters import read
from sentexp.inference.scorer import Scorer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.saved import read_trained
from sentexp.run.train import train as train_run


@pytest.fixture
def fresh():
    """Let the checks of a test start their processes."""


@pytest.fixture
def forked(fresh, monkeypatch):
    """Let these processes be warm, where others of the kind are not."""

    def run(call, *, env, **options):
        return warm.run(call[1:], Path.cwd(), env, options["input"])

    monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run))


@pytest.fixture(autouse=True)
def checked_here(request, monkeypatch):
    """Let a check read in this process what another one would read, unless a test asks for `fresh` ones."""
    if "fresh" not in request.fixturenames:
        monkeypatch.setattr(verify, "_read_in_a_fresh_process", verify._read)


@pytest.fixture(scope="module")
def finished(quick_words, tmp_path_factory):
    """Return a function that trains a run with these words, once, and returns its result."""
    folder, kept = tmp_path_factory.mktemp("runs"), {}

    def finished_run(*words):
        if words not in kept:
            kept[words] = train_run(load_config(*quick_words, f"output_dir={folder}", "tracking=none", *words))
        return kept[words]

    return finished_run


@pytest.fixture
def exported(tmp_path):
    """Return a function that exports a run, and returns the folder, what it says of texts, and what the run says."""

    def write(result, form, texts):
        place = {"run": str(result.folder), "output": str(tmp_path / "export"), "accelerator": "cpu"}
        tracking = from_conf(TrackingConfig, backend=TrackingBackend.none)
        folder = export(from_conf(ExportConfig, tracking=tracking, format=ExportFormat[form], **place))
        wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(texts)
        return folder, read(ExportFormat[form], folder, None)(texts), wanted

    return write


@pytest.fixture(scope="module")
def base_words(tmp_path_factory):
    """Return a function from decoder, or a kind of encoder, to the words of a small base model of that kind."""

    def words(kind):
        if kind == "decoder":
            return []
        folder = tmp_path_factory.mktemp(kind)
        write_encoder(folder, kind)
        return [f"model.path={folder}"]

    return words


@pytest.fixture(scope="module")
def quick_words(reviews):
    """Return the overrides of a quick run."""
    return [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.batch_size=8", "trainer.precision=fp32", "trainer.progress_bar=false",
        "optim.lr=1e-2", "baseline=false", "plots=false",
    ]  # fmt: skip


@pytest.fixture
def texts(reviews):
    """Return the test sentences."""
    return [line.partition("\t")[0] for line in (reviews / "test.tsv").read_text().splitlines()[1:]]


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    """Return a folder of a base model whose weights are random."""
    folder = locate_backbone(load_config("model=tiny").model).folder
    return shutil.copytree(folder, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def many_reviews(tmp_path_factory):
    """Return a folder in GLUE's layout: 64 train, 60 validation and 40 test sentences that are easily told apart."""
    folder = tmp_path_factory.mktemp("many")
    for start, (name, rows) in enumerate({"train": 64, "validation": 60, "test": 40}.items()):
        lines = [f"{'gggg' if row % 2 else 'bbbb'} film {1000 * start + row}\t{row % 2}" for row in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def aspects(tmp_path_factory):
    """Return a folder of splits with sentences, aspects and labels."""
    folder = tmp_path_factory.mktemp("aspects")
    for start, (name, days) in enumerate({"train": 16, "validation": 6, "test": 6}.items()):
        rows = [
            (f"day {100 * start + day} was {word}", aspect, "good" if (word == "warm") == (aspect == "sun") else "bad")
            for day in range(days)
            for word in ("warm", "cold")
            for aspect in ("sun", "ice")
        ]
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("sentence", "aspect", "label"), *rows])
    return folder


@pytest.fixture(scope="module")
def paired(aspects, finished):
    """Return a function that trains a run on the pairs, once."""
    own = ["data=csv", f"data.path={aspects}", "data.text=sentence", "data.text_pair=aspect", "data.labels=null"]
    own += ["data.splits.validation=validation", "data.splits.test=test"]
    return lambda *words: finished(*own, *words)
