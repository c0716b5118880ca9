"""Which file in `conf/` holds the values of which configuration, for hydra and for those who build one in Python.

A configuration in Python has no values of its own: hydra composes them from the files, and `from_conf` reads them
where a part is built without hydra.
"""

import functools
from contextlib import suppress
from dataclasses import field, fields, make_dataclass
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sentexp.config.commands import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PushConfig,
    RegisterConfig,
    ServeConfig,
    UiConfig,
)
from sentexp.config.conf_files import conf_dir, values_in
from sentexp.config.data import Multilingual, PhraseBank, RatedTexts, TableData
from sentexp.config.lora import Lora
from sentexp.config.model import ModelConfig
from sentexp.config.optim import OptimConfig
from sentexp.config.peft import IA3, BiasOnly, FullFineTuning, HeadOnly, Untuned
from sentexp.config.peft_methods import METHODS
from sentexp.config.run import Config
from sentexp.config.sweep import SearchConfig
from sentexp.config.task import CausalLM, SequenceClassification
from sentexp.config.tracking import TrackingConfig
from sentexp.config.trainer import TrainerConfig

Schema = TypeVar("Schema")

ROOTS: dict[str, type] = {
    "config": Config,
    "compare": CompareConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "register": RegisterConfig,
    "serve": ServeConfig,
    "ui": UiConfig,
}
"""The files that a command begins with."""

KINDS: dict[str, dict[str, type]] = {
    "peft": {
        "none": Untuned,
        "head": HeadOnly,
        "full": FullFineTuning,
        "bitfit": BiasOnly,
        "lora": Lora,
        "ia3": IA3,
        **METHODS,
    },
    "data": {"table": TableData, "phrasebank": PhraseBank, "multilingual": Multilingual, "rated": RatedTexts},
    "task": {"seq_cls": SequenceClassification, "causal_lm": CausalLM},
}
"""The groups whose options are of several kinds: each option names its own, as `/schema/peft/lora@_here_`."""

FILES: dict[type, tuple[str, ...]] = {
    **{node: (root,) for root, node in ROOTS.items()},
    **{node: (f"{group}/{name}",) for group in ("peft", "task") for name, node in KINDS[group].items()},
    TableData: ("data", "data/csv"),
    PhraseBank: ("data", "data/fpb"),
    Multilingual: ("data", "data/multilingual"),
    RatedTexts: ("data", "data/tweets"),
    ModelConfig: ("model",),
    OptimConfig: ("optim/adamw",),
    TrainerConfig: ("trainer/default",),
    TrackingConfig: ("tracking/mlflow",),
    SearchConfig: ("search",),
}
"""The files that hold every key of a configuration, the later ones over the earlier."""


@functools.cache
def register_schemas() -> None:
    """Register, once, the root schemas and the schemas of the polymorphic groups with hydra's ConfigStore."""
    store = ConfigStore.instance()
    for root, node in ROOTS.items():
        store.store(name="schema" if root == "config" else f"schema_{root}", node=node)
    for group, kinds in KINDS.items():
        for name, node in kinds.items():
            store.store(group=f"schema/{group}", name=name, node=node)
    _register_sweepers(store)
    one_by_one = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    launchers: dict[str, dict[str, Any]] = {
        "fused": {"_target_": "hydra_plugins.sentexp.FusedLauncher", "max_runs": 16, "workers": "auto"},
    }
    for name, launcher in (launchers | {"sequential": {"_target_": one_by_one}}).items():
        store.store(group="hydra/launcher", name=name, node=launcher)
    _register_cluster_launchers(store)


def _register_cluster_launchers(store: ConfigStore) -> None:
    """Put sentexp's launchers in the place of the plugins', with their keys and further ones, where these are there."""
    from hydra.core.plugins import Plugins

    Plugins.instance()  # looks for plugins, which register theirs
    with suppress(ImportError):
        from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf  # type: ignore[import-untyped]

        slurm = {"_target_": "hydra_plugins.sentexp.SlurmLauncher", "runs_per_job": 1, "max_num_timeout": 20}
        store.store(group="hydra/launcher", name="submitit_slurm", node=_with_keys(SlurmQueueConf, slurm))
    with suppress(ImportError):
        from hydra_plugins.hydra_ray_launcher._config import RayLauncherConf

        ray = {"_target_": "hydra_plugins.sentexp.RayLauncher", "runs_per_job": 1}
        store.store(group="hydra/launcher", name="ray", node=_with_keys(RayLauncherConf, ray))


def _with_keys(plugin: type, keys: dict[str, Any]) -> Any:
    """Return the configuration of a plugin with other defaults, and further keys of any type."""
    known = {item.name: item.type for item in fields(plugin)}
    given = [(name, known.get(name, Any), field(default=value)) for name, value in keys.items()]
    return make_dataclass(plugin.__name__, given, bases=(plugin,))


def _register_sweepers(store: ConfigStore) -> None:
    grid = {"_target_": "hydra_plugins.sentexp.GridSweeper", "params": None}
    store.store(group="hydra/sweeper", name="grid", node=grid)
    each = {"_target_": "hydra_plugins.sentexp.EachSweeper", "max_batch_size": None, "params": None}
    store.store(group="hydra/sweeper", name="each", node=each)
    store.store(group="schema", name="search", node=SearchConfig)
    search = {"defaults": ["/schema/search@_here_", "/search@_here_", "_self_"]}
    store.store(group="hydra/sweeper", name="optuna", node=search)


def load_config(*overrides: str) -> Config:
    """Return the configuration that the command line would compose from these overrides; for notebooks and tests.

    Raises:
        UserError: a value that is out of range.
        hydra.errors.HydraException: an override that does not compose.
    """
    from hydra import compose, initialize_config_dir

    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


def from_conf(kind: type[Schema], **values: Any) -> Schema:
    """Return a configuration with these values, and with those of its file in `conf/` for all other keys.

    Raises:
        UserError: a value that is out of range.
    """
    read = OmegaConf.merge(OmegaConf.structured(kind), *(values_in(file) for file in FILES[kind]))
    assert isinstance(read, DictConfig)
    for key in read:
        if key not in values and not OmegaConf.is_missing(read, key):
            values[str(key)] = OmegaConf.to_object(read[key]) if OmegaConf.is_config(read[key]) else read[key]
    return kind(**values)
