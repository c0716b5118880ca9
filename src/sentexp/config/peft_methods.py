"""The methods of PEFT that need no code of their own: a class for each file in `conf/peft/` that names a `type`.

The fields are the keys of the file, which are those of PEFT's configuration class. PEFT itself is not imported here: it
brings torch, and a wrong key is to be refused before that.
"""

from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import yaml

from sentexp.config.conf_files import conf_dir
from sentexp.config.lora import FOUR_BIT, Lora
from sentexp.config.peft import IA3, BiasOnly, FullFineTuning, HeadOnly, OtherMethod, PeftConfig, PeftMethod

LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""A safe loader, and the quick one where PyYAML has it."""
CLOSED = (bool, int, float)
"""Types that a value keeps; a key whose value is a name, a list or null takes others as well."""
OPEN = ("init_weights",)
"""Keys that take names beside true and false."""


def _schema(file: Path, values: dict[str, Any]) -> type[PeftMethod]:
    """Return the class of a file: its keys beside those that every method has."""
    shared = {"defaults", *PeftMethod.__dataclass_fields__}
    own = {key: value for key, value in values.items() if key not in shared}
    keys = [(key, type(value) if type(value) in CLOSED and key not in OPEN else Any) for key, value in own.items()]
    name = file.stem.title().replace("_", "")
    schema = make_dataclass(name, keys, bases=(PeftMethod,), kw_only=True, slots=True)
    schema.__doc__ = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    schema.__module__ = __name__
    globals()[name] = schema  # where pickle looks for it
    return schema


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.load(file.read_bytes(), LOADER)  # noqa: S506 (both loaders are safe)
    return values


FILES = {file: _read(file) for file in sorted((conf_dir() / "peft").glob("*.yaml"))}
PRESETS = {values["type"]: file for file, values in FILES.items() if values.get("type", "???") != "???"}
"""The file of each method that has one, by PEFT's name of the method."""
METHODS = {file.stem: _schema(file, FILES[file]) for file in PRESETS.values()} | {"other": OtherMethod}
"""The class of each option of `peft` that is a `PeftMethod`."""
OPTIONS = {kind: file.stem for kind, file in PRESETS.items()} | {"LORA": "lora", "IA3": "ia3"}
"""The option of `peft` for each of PEFT's methods that has one."""


def method_name(peft: PeftConfig) -> str:
    """Return the usual name of a way of training, such as lora, qlora, dora, vera or head."""
    four_bit = "q" if peft.quantization in FOUR_BIT else ""
    match peft:
        case Lora():
            return four_bit + ("dora" if peft.use_dora else "lora")
        case PeftMethod():
            return four_bit + peft.type.lower()
    names = {IA3: "ia3", FullFineTuning: "full", BiasOnly: "bitfit", HeadOnly: "head"}
    return names.get(type(peft), "none")
