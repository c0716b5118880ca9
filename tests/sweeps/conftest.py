"""What the tests of sweeps share: the command line in this process, on the tiny model, and which runs it trained."""

import pytest

from sentexp import experiment


@pytest.fixture
def quick(reviews, store):
    return [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.progress_bar=false", "trainer.batch_size=8", "trainer.precision=fp32",
        "tracking.system_metrics=false", "task.template='{text}'", "baseline=false", f"tracking.uri={store}",
    ]  # fmt: skip


@pytest.fixture
def sentexp(quick, command_line):
    """Return the command line for quick runs: their words, but for keys that are given, are added to these."""

    def command(*words):
        given = {word.partition("=")[0] for word in words}
        return command_line(*words, *(word for word in quick if word.partition("=")[0] not in given))

    return command


@pytest.fixture
def trained(monkeypatch):
    """Return the list of runs that were really trained, by the name that the sweep gave them."""
    names = []
    original = experiment._attempt

    def attempt(materials, *rest):
        names.append(materials.config.sweep.name)
        return original(materials, *rest)

    monkeypatch.setattr(experiment, "_attempt", attempt)
    return names
