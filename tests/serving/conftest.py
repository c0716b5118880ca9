"""What the tests of serving share: finished runs of the tiny model, trained once for each file of tests."""

import pytest

from sentexp.config import load_config
from sentexp.experiment import run


@pytest.fixture(scope="module")
def finished(quick_words, tmp_path_factory):
    """Return a function that trains a run with these words, once, and returns its result."""
    folder, kept = tmp_path_factory.mktemp("runs"), {}

    def train(*words):
        if words not in kept:
            kept[words] = run(load_config(*quick_words, f"output_dir={folder}", "tracking=none", *words))
        return kept[words]

    return train


@pytest.fixture(scope="module")
def quick_words(reviews):
    """Return the overrides of a quick run."""
    return [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.batch_size=8", "trainer.precision=fp32", "trainer.progress_bar=false",
        "optim.lr=1e-2", "baseline=false",
    ]  # fmt: skip


@pytest.fixture
def texts(reviews):
    """Return the test sentences."""
    return [line.partition("\t")[0] for line in (reviews / "test.tsv").read_text().splitlines()[1:]]
