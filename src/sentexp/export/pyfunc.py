"""The MLflow model as it runs: under `mlflow models serve`, in `mlflow.pyfunc.load_model`, behind `sentexp serve`."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from sentexp.data.text_parts import join_pairs
from sentexp.inference.answers import answers, output_columns
from sentexp.inference.batching import Batcher
from sentexp.inference.scorer import Scorer
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import Trained, read_trained

if TYPE_CHECKING:
    import pandas as pd

TEXT, TEXT_PAIR = "text", "text_pair"
WEIGHTS, BASE, CALIBRATED = "weights", "base", "calibrated"
CODE = f'''"""MLflow runs this file, so that nothing is unpickled."""

from mlflow.models import set_model

from {__name__} import python_model

set_model(python_model())
'''


@contextmanager
def quiet_pyfunc() -> Iterator[Any]:
    """Yield `mlflow.pyfunc`, without its bars, nor what it warns of itself: its own type hints, its calls of pandas."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings():
        for message in (".*type hint .*is inferred as AnyType", "Operation with range is deprecated"):
            warnings.filterwarnings("ignore", message=message)
        yield import_module("mlflow.pyfunc")


def python_model() -> Any:
    """Return a finished run as MLflow's `PythonModel`: the column `text` in, labels and probabilities out.

    Where the run reads pairs, the second text is in `text_pair`.

    Its `most_rows` are the texts of a call, where more are to be refused. `accelerator` and `max_tokens` are its model
    configuration, as MLflow calls what `load_model` may change; see `Scorer`.
    """
    import pandas as pd

    with quiet_pyfunc() as pyfunc:
        parent = pyfunc.PythonModel

    class SentimentModel(parent):  # type: ignore[misc, valid-type]
        most_rows: int | None = None

        def load_context(self, context: Any) -> None:
            trained = read_trained(Path(context.artifacts[WEIGHTS]))
            carried = context.artifacts.get(BASE)
            base = None if carried is None else Backbone(folder=Path(carried), revision=trained.revision)
            self.scorer = Scorer(trained, base, **context.model_config)
            self.reads_pairs = trained.text_pair is not None
            self.plain = Batcher(self.scorer.probabilities)
            self.calibrated = Batcher(lambda texts: self.scorer.probabilities(texts, calibrated=True))

        def predict(
            self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> pd.DataFrame:
            del context
            texts = read_texts(model_input, self.scorer.trained.strip, self.most_rows, self.reads_pairs)
            score = self.calibrated if (params or {}).get(CALIBRATED) else self.plain
            return to_frame(score(texts), self.scorer.trained)

    return SentimentModel()


def read_texts(table: "pd.DataFrame", strip: bool, most: int | None = None, pairs: bool = False) -> list[str]:
    """Return the texts of a request.

    Args:
        table: with a column `text`, and `text_pair` where texts are pairs.
        strip: take surrounding blanks off, as the run did.
        most: rows; more are refused.
        pairs: whether the run reads pairs.

    Raises:
        MlflowException: no rows, too many, or one without a text; a server answers it with the status 400.
    """
    from mlflow.exceptions import MlflowException

    refuse = MlflowException.invalid_parameter_value
    count = len(table)
    if not count:
        raise refuse("There is no text: give one row at least.")
    if most is not None and count > most:
        raise refuse(f"There are {count:,} texts, and {most:,} are allowed: send them in several requests.")
    columns = {name: table[name].tolist() for name in ([TEXT, TEXT_PAIR] if pairs else [TEXT])}
    for name, values in columns.items():
        for number, text in enumerate(values, start=1):
            if not isinstance(text, str) or not text.strip():
                raise refuse(f"Row {number} has no {name}: give it one, or leave the row out.")
    texts = join_pairs(columns[TEXT], columns[TEXT_PAIR]) if pairs else columns[TEXT]
    return [text.strip() for text in texts] if strip else texts


def to_frame(probabilities: NDArray[Any], trained: Trained) -> "pd.DataFrame":
    """Return what a run says as the columns of a model's output; see `sentexp.inference.answers`."""
    import pandas as pd

    first, names = list(zip(*answers(trained, probabilities), strict=True)), output_columns(trained)
    columns: list[Any] = [*map(list, first), *probabilities.T]
    return pd.DataFrame(dict(zip(names, columns, strict=True)))
