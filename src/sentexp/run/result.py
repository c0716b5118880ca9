"""The result of a run: `result.json` in its folder and among its MLflow artifacts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import CausalLM, Config, TargetKind, TrackingBackend, kind_of
from sentexp.distributed import processes
from sentexp.errors import require
from sentexp.models.adapters import ParameterAudit
from sentexp.system.atomic_write import write_atomic
from sentexp.system.json_files import read_json
from sentexp.tracking.predictions import file_name
from sentexp.tracking.run_dir import RESULT, STATE
from sentexp.tracking.store import find_run, open_store, read_artifact

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("validation", "test")


@dataclass(kw_only=True, slots=True)
class Baseline:
    """A result to compare with: its name for people, its test metrics, the MLflow run that holds it."""

    title: str
    metrics: dict[str, float]
    run_id: str | None


@dataclass(kw_only=True, slots=True)
class Result:
    """What a finished run leaves: where it is, and its metrics by name (`best/...`, `test/...`, costs).

    `result.json` holds all of it, the run's folder apart; `weights` is the name of a folder in that folder. `shots` are
    the examples that the untuned base was shown. Where a text has any number of labels, `thresholds` are the
    probabilities from which each holds, and `confusion` has a row for each label: the rows that lack it and are said to
    lack it, to have it; that have it and are said to lack it, to have it.
    """

    run_id: str | None
    identity: str
    folder: Path
    weights: Path
    metrics: dict[str, float]
    labels: list[str]
    confusion: list[list[int]]
    parameters: ParameterAudit
    objective: float
    baselines: dict[str, Baseline]
    shots: int
    answers: dict[str, str]
    reliability: dict[str, list[tuple[float, float, int]]]
    thresholds: list[float] | None = None

    @property
    def kind(self) -> TargetKind:
        """What is predicted."""
        return kind_of(self.labels, self.thresholds)

    def save(self) -> None:
        """Write `result.json`; it is whole or absent."""
        facts = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_atomic(self.folder / RESULT, json.dumps(facts | {"weights": self.weights.name}, indent=2) + "\n")

    def predictions(self, split: str = "test") -> "pd.DataFrame":
        """Return the predictions for a split, one row each: id, text, label, predicted, `p.<label>`, `slice.<name>`.

        Where a text has any number of labels, label and predicted are lists.

        Raises:
            UserError: another split than validation or test, or the run's folder no longer holds the predictions.
        """
        import pandas as pd

        file = self.folder / file_name(split)
        require(split in SPLITS, f"split={split} must be one of {', '.join(SPLITS)}.")
        require(file.is_file(), f"{file} does not exist: it was deleted, or the run was trained in another folder.")
        return pd.read_parquet(file)

    def plots(self) -> dict[str, Path]:
        """Return the pictures in the run's folder, by their names without the ending."""
        return {file.stem: file for file in sorted(self.folder.glob("*.png"))}

    @classmethod
    def load(cls, facts: dict[str, Any], folder: Path) -> "Result":
        """Return the result whose facts `result.json` of a run in this folder holds."""
        parts = {
            "weights": folder / facts["weights"],
            "parameters": ParameterAudit(**facts["parameters"]),
            "baselines": {name: Baseline(**baseline) for name, baseline in facts["baselines"].items()},
        }
        return cls(folder=folder, **facts | parts)


@processes.main_process_only
def find_result(config: Config, identity: str) -> Result | None:
    """Return the result of a run that is finished; None where there is none.

    Raises:
        UserError: the store cannot be used.
    """
    folder = Path(config.output_dir) / identity
    file = folder / RESULT
    facts = read_json(file) if file.is_file() else None
    if config.tracking.backend is not TrackingBackend.none:
        recorded = find_run(config.tracking, "identity", identity, "FINISHED")
        if recorded is None:
            return None
        if facts is None or facts["run_id"] != recorded.info.run_id:
            text = read_artifact(open_store(config.tracking), recorded.info.run_id, RESULT)
            facts = None if text is None else json.loads(text)
    elif (folder / STATE).is_file():
        return None
    return None if facts is None else Result.load(facts, folder)


def lacks_baselines(result: Result, config: Config) -> bool:
    """Tell whether a finished run was not compared with the baselines that the configuration asks for."""
    return bool(config.baseline) and (not result.baselines or result.shots != shots_of(config))


def shots_of(config: Config) -> int:
    """Return how many examples the untuned base is shown."""
    return config.task.shots if isinstance(config.task, CausalLM) else 0
