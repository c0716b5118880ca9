"""Where the base model and the data of a run come from, and under which licence: said only of what was loaded."""

import re
from pathlib import Path
from types import SimpleNamespace

from omegaconf import OmegaConf

from sentexp.config import conf_dir
from sentexp.config.origin import is_own, title
from sentexp.models.saved import Trained
from sentexp.system.hub import is_local

LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:[ \t]*(\S.*)\n(?:.*\n)*?---", re.IGNORECASE)
"""What the README of a model on the hub begins with."""
UNKNOWN = "not known to sentexp: ask its owner, and write it here"


def model_origin(trained: Trained) -> str:
    """Return what is known of the base model: the header of its option, the licence in its folder, or where to look."""
    model = trained.model
    option = model.name if is_own("model", model) else _option_of_file(trained.revision)
    header = _header("model", option)
    if header or model.path is None:
        return header or f"{UNKNOWN} ({model.title})."
    if not is_local(model.path):
        return f"{model.path}: as its page says, https://huggingface.co/{model.path}."
    readme = Path(model.path).expanduser() / "README.md"
    found = LICENCE.search(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    if found:
        return f"{found[1].strip()}, as the README.md in the folder of {model.title} says."
    return f"{UNKNOWN} ({model.title})."


def data_name(config: Path) -> str | None:
    """Return what the data of a run are called, from its `config.yaml`; None where that is missing."""
    data = _data_of(config)
    return None if data is None else title("data", data)


def data_origin(config: Path) -> str:
    """Return what is known of the data of a run, from its `config.yaml`."""
    data = _data_of(config)
    if data is None:
        return f"{UNKNOWN}."
    if is_own("data", data):
        return _header("data", data.name) or f"{UNKNOWN} ({data.name})."
    if data.path is not None and not is_local(data.path):
        return f"{data.path}: as its page says, https://huggingface.co/datasets/{data.path}."
    return f"{UNKNOWN} ({title('data', data)}, given with data={data.name})."


def _data_of(config: Path) -> SimpleNamespace | None:
    """Return the data group of a run's `config.yaml`: its name, and the keys that say where the rows come from."""
    if not config.is_file():
        return None
    data = OmegaConf.to_container(OmegaConf.load(config).data)
    assert isinstance(data, dict)
    return SimpleNamespace(**{"path": None, **{str(key): value for key, value in data.items()}})


def _header(group: str, option: str | None) -> str:
    """Return what the header of an option's file says of where it is from."""
    file = conf_dir() / group / f"{option}.yaml"
    if option is None or not file.is_file():
        return ""
    header = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    return " ".join(line for line in header if not line.startswith("@package"))


def _option_of_file(sha256: str) -> str | None:
    """Return the option of a model whose file has this digest, so that a copy of the file counts as its own."""
    for file in sorted((conf_dir() / "model").glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(file), "package.sha256") == sha256:
            return file.stem
    return None
