"""The identity of a run: what it computes, not where it is written down."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from sentexp.config import BOOKKEEPING, Config, flatten

ONLY_TELLING = (
    "__main__.py",
    "cli.py",
    "console.py",
    "diagnosis.py",
    "errors.py",
    "compare",
    "serving",
    "sweeps",
    "tracking",
)
"""Sources that compose, launch, print and record, and cannot change a number."""


@functools.cache
def code_version() -> str:
    """Return a digest of sentexp's own sources, as far as they compute: other code may compute other numbers."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] not in ONLY_TELLING:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def settings(config: Config) -> dict[str, Any]:
    """Return the keys of a configuration that say what is computed, and their values."""
    kinds = {"peft": type(config.peft).__name__, "task": type(config.task).__name__}
    return kinds | {key: value for key, value in flatten(config).items() if not key.startswith(BOOKKEEPING)}


def fingerprint(config: Config, *found: Any) -> str:
    """Return 16 hexadecimal digits over resolved configuration, code, and what the configuration led to.

    Paths are left out: the digests of what they hold stand for them, so a moved folder is the same run. So are the
    examples of the untuned base: the prompt holds them where they are shown.

    Args:
        config: of the run.
        found: digest of the data, revision of the backbone, prompt.
    """
    left_out = ("data.path", "model.path", "task.shots")
    return digest_of({key: value for key, value in settings(config).items() if not key.startswith(left_out)}, *found)


def digest_of(*parts: Any) -> str:
    """Return 16 hexadecimal digits over parts that JSON can hold, and the code."""
    text = json.dumps([*parts, code_version()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
