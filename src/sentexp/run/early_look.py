"""What can be wrong with data and model is looked at before PyTorch is imported, which takes longer than small data."""

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from glob import iglob
from pathlib import Path
from typing import Any

from sentexp.config import Config, DataConfig, TableData, flatten, target_kind
from sentexp.config.checks import AUTO
from sentexp.config.devices import NO_GPU, check_devices
from sentexp.errors import UserError, require
from sentexp.system.hub import is_local, local_path

SMALL = 4 * 2**20
"""Bytes of a source that is read ahead: in a fraction of a second."""
DEV = Path("/dev")
DEVICES = ("nvidia[0-9]*", "nvidiactl", "nvgpu*", "nvhost-gpu", "nvmap", "dxg", "kfd")
"""What Linux has in /dev where PyTorch may find a GPU: NVIDIA's, also of Jetson and in WSL, and AMD's."""


def look_early(configs: Iterable[Config]) -> None:
    """Refuse runs of which none can begin: for want of a GPU, for a path that does not exist, or for local data.

    Data must be readable where they are small; of large ones, only the names of columns are looked at.

    Where some of several runs can, the others say so when their turn has come.

    Raises:
        UserError: what is wrong with the first of them.
    """
    wrong: UserError | None = None
    seen: list[list[Any]] = []
    for config in configs:
        trainer = config.trainer
        devices = [trainer.accelerator, trainer.precision, trainer.cuda_graphs, config.optim.name]
        looked = [flatten(config.data), config.model.path, target_kind(config.task).name, *devices]
        if looked in seen:
            continue
        seen.append(looked)
        try:
            _look(config)
        except UserError as error:
            wrong = wrong or error
        else:
            return
    if wrong is not None:
        raise wrong


def _look(config: Config) -> None:
    data, model = config.data, config.model
    if not gpu_is_possible():
        require_no_gpu(config)
    if data.path is not None and is_local(data.path):
        if _is_small(data):
            from sentexp.data.sources import load_source

            load_source(data, target_kind(config.task))
        elif isinstance(data, TableData):
            from sentexp.data.sources.table import look_at_columns

            look_at_columns(data)
    if model.path is not None and is_local(model.path):
        local_path("model.path", model.path)


def gpu_is_possible() -> bool:
    """Tell whether PyTorch may find a GPU; it surely finds none on a Linux without any device for one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return sys.platform != "linux" or any(any(DEV.glob(name)) for name in DEVICES)


def require_no_gpu(config: Config) -> None:
    """Refuse a configuration that needs a GPU, where there is none."""
    trainer = config.trainer
    require(trainer.accelerator != "gpu", NO_GPU.format(key="trainer.accelerator"))
    if trainer.accelerator == AUTO:
        check_devices(replace(trainer, accelerator="cpu"), config.optim.name, config.peft, config.task)


def _is_small(data: DataConfig) -> bool:
    """Tell whether a local source is read in a moment, as is found what is not there."""
    assert data.path is not None
    path, size = Path(data.path).expanduser(), 0
    pattern = map(Path, iglob(str(path)))  # noqa: PTH207 (it may be absolute)
    files = path.rglob("*") if path.is_dir() else [path] if path.exists() else pattern
    for file in files:
        size += file.stat().st_size if file.is_file() else 0
        if size > SMALL:
            return False
    return True
