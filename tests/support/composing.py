"""Configurations for tests: hydra composes each choice of options once, and what differs in single values is filled in.

Hydra takes 0.1 s to compose a configuration, and the tests ask for thousands. Where anything but single values differs,
hydra composes it as always.
"""

import functools

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sentexp.config import Config, conf_dir, register_schemas
from sentexp.config import load_config as load_anew
from sentexp.sweeps.plain_values import with_plain_values

OPTIONS = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}


def load_config(*overrides: str) -> Config:
    """Return what `sentexp.config.load_config` returns, sooner."""
    options = tuple(word for word in overrides if word.partition("=")[0] in OPTIONS)
    try:
        composed = with_plain_values(_composed(options), [word for word in overrides if word not in options])
    except Exception:
        return load_anew(*overrides)  # its error is the one that is tested
    if composed is None:
        return load_anew(*overrides)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


@functools.cache
def _composed(options: tuple[str, ...]) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(options))
