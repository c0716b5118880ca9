"""sentexp: fine-tune language models for sentiment classification, and know which configuration is really better.

from sentexp import load_config, train
result = train(load_config("peft=lora", "data=tweets"))
result.metrics["test/accuracy"], result.predictions(), result.plots()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentexp.config import load_config
    from sentexp.run.train import train

__version__ = "0.2.0"
__all__ = ["__version__", "load_config", "train"]
_HOMES = {"load_config": "sentexp.config", "train": "sentexp.run.train"}
"""Where the functions are, which are imported when they are asked for: `import sentexp` loads nothing else."""


def __getattr__(name: str) -> Any:
    """Return a function of the package by its name."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sentexp' has no attribute {name!r}")
