"""What a model or a data set is called: by the name of its option where it is the option's own, else by its path."""

import functools
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sentexp.config.conf_files import conf_dir

ENDINGS = re.compile(
    r"(\.(csv|tsv|txt|jsonl?|ndjson|parquet|arrow|feather|xlsx?|ods|gguf|zip|tar|gz|bz2|xz|zst))+$", re.I
)
IN_HUB_CACHE = re.compile(r"/(?:models|datasets)--([^/]+)/snapshots/[^/]+/?$")
SOURCES = ("path", "package", "files", "random")
"""The keys that say where a model or a data set comes from."""


def is_own(group: str, config: Any) -> bool:
    """Tell whether a model or a data set comes from where its option says, so that all that is said of it holds.

    An option whose file is not found is taken at its word.

    Args:
        group: `model` or `data`.
        config: of it.
    """
    option = _option(group, config.name, _folders())
    if option is None:
        return True
    return all(_essence(getattr(config, key, None)) == _essence(option.get(key)) for key in SOURCES)


def title(group: str, config: Any) -> str:
    """Return the name of an option that came from its own source, else a name for what was given in its place."""
    if is_own(group, config):
        return str(config.name)
    if config.path is not None:
        return name_of(config.path)
    given = getattr(config, "package", None)
    return "random" if given is None and group == "model" else name_of(given.file) if given else str(config.name)


def name_of(path: str) -> str:
    """Return a short name for a file, a folder, a pattern or a hub id: its last part, without the ending of a table."""
    cached = IN_HUB_CACHE.search(path)
    whole = Path(path).expanduser()
    last = cached[1].rpartition("--")[2] if cached else whole.name or whole.absolute().name
    if last == "..":
        last = whole.resolve().name
    return re.sub(r"[^\w.+-]+", "_", ENDINGS.sub("", last)).strip("_.-") or "unnamed"


def _folders() -> tuple[Path, ...]:
    """Return where options are looked for: in the folders of the command line too, where hydra has composed it."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    own = [Path(source.path) for source in sources if source.provider == "command-line"]
    return (conf_dir(), *own)


@functools.cache
def _option(group: str, name: str, folders: tuple[Path, ...]) -> dict[str, Any] | None:
    """Return the values of an option's file, and of the options that it starts from."""
    file = next((file for folder in folders if (file := folder / group / f"{name}.yaml").is_file()), None)
    if file is None:
        return None
    read = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(read, dict)
    values: dict[str, Any] = {}
    for start in read.get("defaults", []):
        if isinstance(start, str) and "/" not in start and start != "_self_":
            values |= _option(group, start, folders) or {}
    return values | {str(key): value for key, value in read.items()}


def _essence(source: Any) -> Any:
    """Return what a source cannot be another without: digests and rows of files, the shape of random weights."""
    value = asdict(source) if is_dataclass(source) and not isinstance(source, type) else source
    if not isinstance(value, dict):
        return value
    if "sha256" in value:
        return value["sha256"], value.get("where") or {}
    return {name: _essence(part) for name, part in value.items()}
