"""The check of an export: another process reads it, and gives the probabilities that the run gives.

python -m sentexp.export.verify peft exports/1a2b3c-peft cpu < texts.json
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.config import ExportFormat, ExportType, Quantization
from sentexp.data.text_parts import PAIR
from sentexp.errors import UserError, require
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import Trained
from sentexp.system.console import waiting
from sentexp.tracking.predictions import file_name

ROWS = 64
PIECE = ("a warm and funny film", "two hours felt like two days", "good", "the plot makes no sense; the cast is fine")
"""What texts are made of where the run's own rows are no longer there."""
EXACT, ROUNDED = 1e-3, 3e-2
"""Differences of probabilities that are allowed: in float32, and of weights in 16 bits."""
MARK = "sentexp-check:"


@dataclass(kw_only=True, slots=True)
class Verification:
    """How far what an export says, probabilities or scores, is from the run's, at most, and how far it may be."""

    said: str
    rows: int
    difference: float
    tolerance: float

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"in a fresh process its {self.said} of {self.rows} rows differ from the run's by "
            f"{self.difference:.1e} at most (allowed: {self.tolerance:g})"
        )


def expected(scorer: Scorer) -> tuple[list[str], NDArray[Any]]:
    """Return rows of the scorer's run, or texts of our own without any, and its probabilities of them."""
    texts = _rows(scorer.trained)
    if scorer.trained.text_pair is not None:  # long ones are cut in other ways by other programs
        texts = scorer.whole(texts) or scorer.whole(_made(scorer.trained))
    return texts, scorer.probabilities(texts)


def verify_export(wanted: NDArray[Any], arguments: Sequence[str], texts: list[str], tolerance: float) -> Verification:
    """Read an export in a fresh process.

    Args:
        wanted: the run's probabilities, shape (texts, labels).
        arguments: of this file as a program.
        texts: to be read.
        tolerance: the largest difference that is allowed.

    Raises:
        UserError: it cannot be read, or says something else.
    """
    with waiting("Checking it in a fresh process"):
        probabilities = _read_in_a_fresh_process(arguments, texts)
    require(
        probabilities.shape == wanted.shape,
        f"it gives {probabilities.shape} probabilities, and the run {wanted.shape}.",
    )
    said = "scores" if wanted.shape[1] == 1 else "probabilities"
    difference = float(np.abs(probabilities - wanted).max())
    verification = Verification(said=said, rows=len(texts), difference=difference, tolerance=tolerance)
    require(verification.difference <= tolerance, f"{verification}.")
    return verification


def _read_in_a_fresh_process(arguments: Sequence[str], texts: list[str]) -> NDArray[Any]:
    """Return what another process that runs this file as a program says of texts, shape (texts, labels)."""
    call = [sys.executable, "-m", "sentexp.export.verify", *arguments]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603 (this file)
        call, input=json.dumps(texts), capture_output=True, text=True, env=offline, check=False, encoding="utf-8"
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    require(done.returncode == 0 and len(answers) == 1, f"a fresh process cannot read it: {last[:500]}")
    return np.array(json.loads(answers[0].removeprefix(MARK)), np.float32)


def tolerance_of(trained: Trained, dtype: ExportType) -> float:
    """Return the difference that is allowed to an export of weights in these numbers; of scores by their scale."""
    exact = dtype is ExportType.float32 and trained.storage.quantization is Quantization.none
    return (EXACT if exact else ROUNDED) * (1.0 if trained.scale is None else trained.scale[1])


def _rows(trained: Trained) -> list[str]:
    """Return texts of the run's test rows, spread over all of them."""
    import pyarrow.parquet as pq

    file = trained.folder.parent / file_name("test")
    if not file.is_file():
        return _made(trained)
    texts: list[str] = pq.read_table(file, columns=["text"]).column("text").to_pylist()
    step = max(1, len(texts) // ROWS)
    return texts[::step][:ROWS]


def _made(trained: Trained) -> list[str]:
    """Return texts of our own, or pairs of them."""
    texts = [" ".join(PIECE[place % len(PIECE)] for place in range(number, 2 * number + 1)) for number in range(ROWS)]
    if trained.text_pair is None:
        return texts
    return [f"{text}{PAIR}{PIECE[number % len(PIECE)]}" for number, text in enumerate(texts)]


def _read(arguments: Sequence[str], texts: Sequence[str]) -> NDArray[Any]:
    """Return what an export says of texts, shape (texts, labels).

    Args:
        arguments: its format, its folder, cpu or gpu (not of MLflow models) and, if it has moved, its base model.
        texts: to be read.

    Raises:
        UserError: it cannot be read.
    """
    form, folder, *rest = arguments
    if form == "mlflow":
        from sentexp.export.mlflow_model import read_model

        return read_model(Path(folder))(texts)
    from sentexp.export.exporters import read

    accelerator, *base = rest
    return read(ExportFormat[form], Path(folder), base[0] if base else None, accelerator)(texts)


def main() -> None:
    """Print the probabilities of the texts on standard input."""
    try:
        probabilities = _read(sys.argv[1:], json.load(sys.stdin))
    except UserError as error:
        sys.exit(str(error))
    print(MARK + json.dumps(probabilities.tolist()))


if __name__ == "__main__":
    main()
