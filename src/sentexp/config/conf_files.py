"""The files in `conf/`: where they are, and the values in them."""

import functools
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def conf_dir() -> Path:
    """Return the absolute folder of the config groups: inside an installed wheel, else in the checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


@functools.cache
def values_in(file: str) -> DictConfig:
    """Return the keys and values of a file such as `peft/lora`, without those that speak to hydra."""
    read = OmegaConf.load(conf_dir() / f"{file}.yaml")
    assert isinstance(read, DictConfig)
    return OmegaConf.masked_copy(read, [str(key) for key in read if key not in ("defaults", "hydra")])
