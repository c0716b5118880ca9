"""What can be wrong with data and model is looked at before PyTorch is imported, which takes longer than small data."""

from collections.abc import Iterable
from glob import iglob
from pathlib import Path

from sentexp.config import Config, DataConfig, flatten, target_kind
from sentexp.errors import UserError
from sentexp.system.hub import is_local, local_path

SMALL = 4 * 2**20
"""Bytes of a source that is read ahead: in a fraction of a second."""


def look_early(configs: Iterable[Config]) -> None:
    """Refuse runs of which none can begin: for a path that does not exist, or small local data that cannot be read.

    Where some of several runs can, the others say so when their turn has come.

    Raises:
        UserError: what is wrong with the first of them.
    """
    wrong, seen = None, []
    for config in configs:
        looked = [flatten(config.data), config.model.path, target_kind(config.task).name]
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
    if data.path is not None and is_local(data.path) and _is_small(data):
        from sentexp.data.sources import load_source

        load_source(data, target_kind(config.task))
    if model.path is not None and is_local(model.path):
        local_path("model.path", model.path)


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
