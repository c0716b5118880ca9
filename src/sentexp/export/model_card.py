"""The model card of an export: data, audit, metrics with intervals, slices, limits, licences, and how to repeat it."""

import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sentexp.compare.comparison import Comparison, Configuration, Scored
from sentexp.compare.statistics import measure_configurations
from sentexp.config import TargetKind
from sentexp.export.usage import usage
from sentexp.export.verify import Verification
from sentexp.inference.run_lookup import Finished
from sentexp.models.origins import data_name, data_origin, model_origin
from sentexp.models.saved import Trained
from sentexp.system.hub import is_local
from sentexp.tracking.predictions import file_name, read_predictions

RESAMPLES, CONFIDENCE = 2000, 0.95
CARD, CONFIG = "README.md", "config.yaml"


def is_export(folder: Path) -> bool:
    """Tell whether a folder holds an export: its card says so."""
    card = folder / CARD
    return card.is_file() and "\n- sentexp\n---\n" in card.read_text(encoding="utf-8", errors="replace")


def write_card(finished: Finished, form: str, verification: Verification, folder: Path, numbers: str = "") -> None:
    """Write the card of a run, and its configuration, into a folder.

    Args:
        finished: the run.
        form: what it was written as.
        verification: of the export.
        folder: to write to.
        numbers: what its weights are written in.
    """
    from jinja2 import Environment, StrictUndefined

    trained, run_folder = finished.trained, finished.trained.folder.parent
    if (run_folder / CONFIG).is_file():
        shutil.copyfile(run_folder / CONFIG, folder / CONFIG)
    title = re.sub(r" \([0-9a-f]{16}\).*", "", finished.name)
    result, tags = _json(run_folder / "result.json"), {} if finished.run is None else finished.run.data.tags
    metrics, audit = result.get("metrics", {}), _json(run_folder / "data_audit.json")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 (Markdown)
    environment.filters["line"] = lambda text: re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
    template = environment.from_string(files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"))
    text = template.render(
        library="peft" if form == "peft" else "transformers",
        base_id=trained.model.path if trained.model.path and not is_local(trained.model.path) else "",
        title=title if title.startswith(trained.model.title) else f"{trained.model.title}: {title}",
        about=_about(trained, result),
        labels=trained.labels,
        columns=list(audit["labels"]["train"]) if trained.kind is TargetKind.scores and audit else trained.labels,
        identity=trained.identity,
        run_id=trained.run_id,
        form=form + numbers,
        verification=str(verification),
        usage=usage(trained, form, folder),
        template=trained.prompt.template.encode("unicode_escape").decode("ascii"),
        audit=audit,
        data=data_name(run_folder / CONFIG),
        rows=0
        if not (run_folder / file_name("test")).is_file()
        else len(read_predictions(run_folder / file_name("test")).targets),
        metrics=_metrics(run_folder),
        slices=_slices(metrics, trained.kind.headline),
        headline=trained.kind.headline,
        cut=_cut(trained),
        kind=trained.kind.name,
        ece=metrics.get("test/ece"),
        temperature=trained.temperature,
        base_licence=model_origin(trained),
        data_licence=data_origin(run_folder / CONFIG),
        command=tags.get("command", ""),
        has_config=(folder / CONFIG).is_file(),
        environment={name: value for name, value in tags.items() if name.startswith(("git.", "version."))},
    )
    (folder / CARD).write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")


def _about(trained: Trained, result: dict[str, Any]) -> str:
    kinds = {"adapter_config.json": "an adapter", "head.safetensors": "a classification head alone"}
    kinds_there = (kind for name, kind in kinds.items() if (trained.folder / name).is_file())
    kind = next(kinds_there, "all weights" if trained.whole else "")
    trains = result.get("parameters", {}).get("trainable", {"": 1})  # a classifier that is used as it is has a head
    kind = kind if any(trains.values()) else ""
    what = f"{kind} trained on" if kind else "nothing trained:"
    how = "which answers a prompt with label words" if trained.answers else "under a classification head"
    stored = trained.storage.quantization.name
    packed = "" if stored == "none" else f", stored in {stored}"
    kind_of_model = {
        TargetKind.scores: "A model of sentiment scores",
        TargetKind.classes: "A classifier of sentiment",
        TargetKind.label_sets: "A classifier that gives a text any number of labels",
    }[trained.kind]
    return (
        f"{kind_of_model}: {what} the base model {trained.model.title} (revision {trained.revision[:12]}"
        f"{packed}), {how}."
    )


def _cut(trained: Trained) -> str:
    if trained.text_pair is None:
        return f"A text of more than {trained.max_length} tokens loses its end."
    return f"A pair of more than {trained.max_length} tokens loses the end of its first text."


def _metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Return the test metrics with their intervals, from the predictions of the run."""
    file = run_folder / file_name("test")
    if not file.is_file():
        return []
    predictions = read_predictions(file)
    run = Scored(
        run_id="",
        name="",
        seed="",
        probabilities=predictions.probabilities,
        file=file,
        settings={},
        metrics={},
        tags={},
        thresholds=predictions.thresholds,
    )
    one = Configuration(name="", runs=[run])
    comparison = Comparison(
        title="",
        split="test",
        labels=predictions.labels,
        ids=predictions.ids,
        targets=predictions.targets,
        slices=predictions.slices,
        configurations=[one],
    )
    names = comparison.kind.compared
    evidence = measure_configurations(comparison, [one], RESAMPLES, 0, CONFIDENCE, metrics=names)
    intervals = {name: evidence.interval(0, name) for name in names}
    return [
        {"name": name, "value": interval.value, "low": interval.low, "high": interval.high}
        for name, interval in intervals.items()
        if np.isfinite([interval.value, interval.low, interval.high]).all()
    ]


def _slices(metrics: dict[str, float], headline: str) -> list[dict[str, Any]]:
    """Return the slices of the test rows that the run has measured."""
    rows = []
    for key, value in metrics.items():
        split, _, name = key.removesuffix(f"/{headline}").partition("/")
        if split == "test" and name and key.endswith(f"/{headline}") and f"test/{name}/rows" in metrics:
            rows.append({"name": name, "rows": int(metrics[f"test/{name}/rows"]), "value": value})
    return rows


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
