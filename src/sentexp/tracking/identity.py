"""The identity of a run: what it computes, not where it is recorded."""

import hashlib
import json
from typing import Any

from sentexp.config import ASKING, AUTO, BOOKKEEPING, Config, SequenceClassification, flatten

NUMERICS_VERSION = "b3d63fd2ec16d744601a819c533c39ec4e7998ded9dd8194f6948c4b4baa0750"
"""The version of what sentexp computes, a part of every identity.

Give it a new value, "2" and so on, in the commit that lets the same configuration compute other numbers, beyond
rounding: every run is then trained again. `tests/run/test_numerics.py` says when that is. Its first value is the
digest of the sources that identities used to hold, so that the runs of that release are still found.
"""


LATER: dict[str, Any] = {
    "data.columns": [],
    "data.sheet": None,
    "data.ordered": False,
    "data.text_pair": None,
    "data.label_delimiter": ";",
    "model.labels": None,
    "task.loss": "cross_entropy",
    "peft.init": "default",
    "task.label_smoothing": 0.0,
    "task.r_drop": 0.0,
    "task.neftune_alpha": 0.0,
    "optim.lr_scale": 1.0,
    "optim.layer_decay": 1.0,
    "trainer.average": "none",
    "trainer.average_decay": 0.999,
    "trainer.average_checkpoints": 5,
    "trainer.average_interval": 10,
    "trainer.unfreeze": None,
    "model.head": "auto",
    "model.package.beside": {},
    "model.package.pieces": {},
    "peft.init_rows": 256,
    "peft.rank_pattern": None,
    "peft.alpha_pattern": None,
    "peft.exclude_modules": None,
    "peft.modules_to_save": None,
    "optim.lora_plus_ratio": None,
}
"""Keys that earlier releases did not have, and the value that computes what these did: it is not part of identities."""
WRITTEN_OUT = {"task.template": ASKING, "task.head_init": "label_words"}
"""Defaults of earlier releases that are auto now: they identify a sweep. Those of a run are resolved."""


SAME = {("data.name", "file"): "csv"}
"""Options that are another by a second name: what their key and value stand for in identities."""


def settings(config: Config) -> dict[str, Any]:
    """Return the keys of a configuration that say what is computed, and their values."""
    kinds = {"peft": type(config.peft).__name__, "task": type(config.task).__name__}
    known = {key: value for key, value in flatten(config).items() if not key.startswith(BOOKKEEPING)}
    known = {key: value for key, value in known.items() if key not in LATER or value != LATER[key]}
    known |= {key: SAME[key, value] for key, value in known.items() if isinstance(value, str) and (key, value) in SAME}
    if isinstance(config.task, SequenceClassification):
        known |= {key: value for key, value in WRITTEN_OUT.items() if known[key] == AUTO}
    return kinds | known


def fingerprint(config: Config, *resolved: Any) -> str:
    """Return 16 hexadecimal digits over resolved configuration, numerics, and what the configuration led to.

    Paths are left out: the digests of their contents represent them, so a moved folder is the same run. So are the
    examples of the untuned base: the prompt holds them where they are shown.

    Args:
        config: of the run.
        resolved: digest of the data, revision of the backbone, prompt.
    """
    left_out = ("data.path", "model.path", "task.shots")
    return digest_of({key: value for key, value in settings(config).items() if not key.startswith(left_out)}, *resolved)


def digest_of(*parts: Any) -> str:
    """Return 16 hexadecimal digits over parts that JSON can hold, and the version of the numerics."""
    text = json.dumps([*parts, NUMERICS_VERSION], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
