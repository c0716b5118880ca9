"""One quick run: the protocol of a run on few rows in a folder of its own, and its weights read again."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from sentexp.config import PeftMethod, Precision, Quantization
from sentexp.errors import require
from sentexp.inference.scorer import Scorer
from sentexp.models.loading import load_tokenizer
from sentexp.models.merge import merge
from sentexp.models.peft_methods import NOT_MERGEABLE
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import Trained, find_base, read_trained
from sentexp.plan.workload import Workload
from sentexp.quick.few_rows import with_few_rows
from sentexp.run.cache import clear_cache
from sentexp.run.fitting import fit_and_test
from sentexp.run.inputs import RunInputs
from sentexp.run.out_of_memory import with_smaller_batches
from sentexp.run.recording import CONFIG, record_inputs, record_result
from sentexp.run.weights_card import write_weights_card
from sentexp.system.console import say
from sentexp.system.memory import GIB, free_memory_gib, release_memory
from sentexp.tracking.predictions import file_name, read_predictions
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import RunLogger

EXACT, ROUNDED = 1e-3, 5e-2
"""Differences of probabilities that are allowed: in float32, and in fewer bits, where the rows of a batch matter."""
COPIES = 4
"""How often memory must hold the files of a base model that is merged: float32 is twice bfloat16, and there twice."""


@dataclass(kw_only=True, slots=True)
class Trial:
    """What a quick run has shown: its peak memory, and by how much probabilities of its test rows differ at most.

    `read` are those of the weights that are read again, `merged` those of the merged ones; None where merging was not
    tried, for the reason in `unmerged`.
    """

    peak_gib: float
    read: float
    merged: float | None
    unmerged: str


def try_out(inputs: RunInputs, work: Workload, folder: Path) -> Trial:
    """Train, evaluate, record and save two steps of a run in a folder, and read its weights again.

    Args:
        inputs: of the run.
        work: its batches.
        folder: for what the run writes.

    Raises:
        UserError: anything that would stop the run, or weights that give other probabilities when they are read again.
    """
    began, few, logger = monotonic(), with_few_rows(inputs, work), RunLogger()
    with RunDir(folder) as run_dir:
        record_inputs(logger, few, folder)
        result = with_smaller_batches(partial(fit_and_test, few, logger, run_dir, None), few, logger, run_dir)
        write_weights_card(result, few.config, few.data_audit, folder / CONFIG)
        result = record_result(logger, result, few.config, began)
    clear_cache("model")
    release_memory()
    trained = read_trained(result.weights)
    base = find_base(trained)
    texts: list[str] = few.examples.test.column("text").to_pylist()
    say("Reading the saved weights again")
    wanted = read_predictions(folder / file_name("test")).probabilities
    accelerator = "gpu" if inputs.device.type == "cuda" else "cpu"
    read = _difference(Scorer(trained, base, accelerator), texts, wanted, "read again")
    release_memory()
    unmerged = _why_unmerged(base, inputs)
    merged = None if unmerged else _merged(trained, base, inputs, texts, wanted)
    release_memory()
    return Trial(peak_gib=result.metrics["peak_memory_gib"], read=read, merged=merged, unmerged=unmerged)


def _merged(
    trained: Trained, base: Backbone, inputs: RunInputs, texts: list[str], wanted: NDArray[np.float32]
) -> float:
    """Return by how much the probabilities of the merged model, which exports are made of, differ at most."""
    tokenizer = load_tokenizer(Backbone(folder=trained.folder, revision=""))
    model = merge(trained, base, inputs.device)
    accelerator = "gpu" if inputs.device.type == "cuda" else "cpu"
    scorer = Scorer(trained, base, accelerator, precision=Precision.fp32, loaded=(model, tokenizer))
    return _difference(scorer, texts, wanted, "merged")


def _why_unmerged(base: Backbone, inputs: RunInputs) -> str:
    """Return why merging is not tried; nothing where it is."""
    method = inputs.config.peft.type if isinstance(inputs.config.peft, PeftMethod) else ""
    if method in NOT_MERGEABLE:
        return f"PEFT cannot merge {method}"
    needed = COPIES * sum(file.stat().st_size for file in base.folder.glob("*.safetensors")) / GIB
    free = free_memory_gib(inputs.device)
    return f"merging takes about {needed:.1f} GiB, and {free:.1f} are free" if needed > free else ""


def _difference(scorer: Scorer, texts: list[str], wanted: NDArray[np.float32], how: str) -> float:
    """Return by how much the probabilities of texts differ at most from those of the run.

    Raises:
        UserError: by more than rounding can explain.
    """
    trained = scorer.trained
    exact = trained.precision is Precision.fp32 and trained.storage.quantization is Quantization.none
    tolerance = (EXACT if exact else ROUNDED) * (1.0 if trained.scale is None else trained.scale[1])
    difference = float(np.abs(scorer.probabilities(texts) - wanted).max())
    require(
        difference <= tolerance,
        f"The saved weights, {how}, give probabilities that differ from those of the run by {difference:.1e}, and "
        f"{tolerance:g} is allowed: predict, serve and export would answer something else. This is a fault of sentexp "
        "or of its libraries for this configuration: please report it.",
    )
    return difference
