"""A value and its meaning stand in one place, a file of `conf/`; what Python builds takes them from it."""

import re
from dataclasses import MISSING, fields

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sentexp.config import (
    CompareConfig,
    EvaluateConfig,
    EvaluatedSplit,
    PackageFile,
    PackageModel,
    PackageTable,
    RandomWeights,
    SearchConfig,
    Splits,
    SweepConfig,
    TrackingBackend,
    TrackingConfig,
    conf_dir,
    from_conf,
    load_config,
    register_schemas,
)
from sentexp.config.registry import FILES
from sentexp.errors import UserError

PARTS = {
    SweepConfig: ("config",),
    RandomWeights: ("model/tiny",),
    PackageFile: ("model/smollm2_135m",),
    PackageModel: ("model/smollm2_135m",),
    PackageTable: ("data/imdb",),
    Splits: ("data/csv",),
}
"""The configurations that stand inside another, and an example of each."""

CHOSEN = ("name", "model", "peft", "data", "task", "optim", "trainer", "tracking", "sweep", "splits", "files", "verb")
"""Keys that choose an option, or hold other keys: the file of the option says what it is."""

OPTIONAL = {(EvaluateConfig, "data"), (PackageTable, "where")}
"""Keys that no file gives: see there."""


def keys_with_comments(files):
    text = "\n".join((conf_dir() / f"{file}.yaml").read_text() for file in files)
    return set(re.findall(r"^ *(\w+):.* # \S", text, re.MULTILINE))


@pytest.mark.parametrize("kind", [*FILES, *PARTS], ids=lambda kind: kind.__name__)
def test_every_key_stands_in_a_file_with_what_it_means(kind):
    told = keys_with_comments((FILES | PARTS)[kind])
    assert {item.name for item in fields(kind)} - set(CHOSEN) <= told


@pytest.mark.parametrize("kind", [*FILES, *PARTS], ids=lambda kind: kind.__name__)
def test_no_value_stands_in_python_as_well(kind):
    given = {item.name for item in fields(kind) if item.default is not MISSING or item.default_factory is not MISSING}
    assert given == {name for owner, name in OPTIONAL if owner is kind}


def test_a_configuration_in_python_has_the_values_of_its_file():
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.mlflow, uri="sqlite:///x.db")
    assert tracking == load_config("tracking.uri=sqlite:///x.db").tracking
    compared = from_conf(CompareConfig, tracking=tracking, runs=["1a"])
    assert (compared.tracking, compared.runs) == (tracking, ["1a"])
    assert (compared.metric, compared.split, compared.rows) == ("auto", EvaluatedSplit.test, 10)


def test_what_a_file_leaves_open_must_be_given():
    with pytest.raises(TypeError, match="tracking"):
        from_conf(CompareConfig)
    with pytest.raises(TypeError, match="colour"):
        from_conf(TrackingConfig, colour="red")
    with pytest.raises(UserError, match="compare reads what MLflow holds"):
        from_conf(CompareConfig, tracking=from_conf(TrackingConfig, backend=TrackingBackend.none))


def test_a_list_that_a_file_gives_is_not_shared():
    one, other = from_conf(SearchConfig), from_conf(SearchConfig)
    one.objectives.append("seconds")
    assert other.objectives == []


def test_the_keys_of_a_search_are_those_of_its_file():
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = compose("config", ["hydra/sweeper=optuna"], return_hydra_config=True).hydra
    assert OmegaConf.to_object(hydra.sweeper) == from_conf(SearchConfig)
