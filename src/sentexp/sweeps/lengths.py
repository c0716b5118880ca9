"""Roughly how long the runs of a sweep take, before any has trained."""

import math
from pathlib import Path

from sentexp.config import Config, HeadOnly, TrainerConfig, Untuned
from sentexp.errors import UserError
from sentexp.run.inputs import RunSpec, resolve_inputs
from sentexp.run.resolve import resolve_config

BACKWARD = 3
"""A training step takes about three times as long as reading the same rows."""
CHARACTERS_PER_TOKEN = 4
SAMPLED = 200
"""Texts whose mean length is that of all."""


def estimate_length(config: Config) -> float:
    """Return how long a run takes, in no unit: the bytes of its backbone times the tokens that it reads.

    A run that cannot start takes no time. Early stopping is not foreseen.
    """
    try:
        spec = resolve_inputs(resolve_config(config))
    except UserError:
        return 0.0
    rows = {split: len(spec.examples.targets(split)) for split in ("train", "validation", "test")}
    tokens = _tokens_per_row(spec)
    trained = _rows_trained(config.trainer, rows["train"], tokens)
    evaluations = max(1.0, trained / max(1, rows["train"]))
    if isinstance(config.peft, Untuned):
        trained, evaluations = 0.0, 1.0
    elif isinstance(config.peft, HeadOnly):  # reads each text once
        trained, evaluations = rows["train"] / BACKWARD, 1.0
    read = BACKWARD * trained + evaluations * rows["validation"] + rows["test"]
    return read * tokens * _weight_bytes(spec.backbone.folder)


def _rows_trained(trainer: TrainerConfig, rows: int, tokens: float) -> float:
    """Return how many rows all steps take together."""
    per_batch = trainer.batch_size if trainer.max_tokens is None else max(1.0, trainer.max_tokens / tokens)
    most = (trainer.max_steps or math.inf) * per_batch * trainer.accumulate_grad_batches
    return min(float(trainer.max_epochs * rows), most)


def _tokens_per_row(spec: RunSpec) -> float:
    texts = spec.examples.train.column("text").slice(0, SAMPLED).to_pylist()
    characters = sum(len(text or "") for text in texts) / max(1, len(texts))
    return max(1.0, min(float(spec.config.data.max_length), characters / CHARACTERS_PER_TOKEN))


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or 1
