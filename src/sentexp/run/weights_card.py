"""The card of a run's folder of weights: what they are, how they are loaded, and how well they were measured."""

import re
from pathlib import Path

from sentexp.compare.sample_size import wilson
from sentexp.config import Config, TargetKind
from sentexp.config.metric_names import MEASURED
from sentexp.data.audit import DataAudit
from sentexp.distributed import processes
from sentexp.models.loading_code import loading_code
from sentexp.models.origins import data_origin, model_origin
from sentexp.models.saved import Trained, read_trained
from sentexp.run.result import Result
from sentexp.system.hub import is_local
from sentexp.system.json_files import read_json
from sentexp.tracking.provenance import command

CARD = "README.md"
SHOWN = tuple(name for name in MEASURED if name not in ("precision_macro", "recall_macro", "qwk", "within_one"))


@processes.main_process_writes
def write_weights_card(result: Result, config: Config, audit: DataAudit, config_file: Path) -> None:
    """Write `README.md` into the folder of weights, in the place of PEFT's empty one.

    Args:
        result: of the run; its weights are written.
        config: of the run.
        audit: of its data.
        config_file: the run's `config.yaml`.
    """
    trained = read_trained(result.weights)
    facts = read_json(result.weights / "sentexp.json")
    parts = [
        _front(trained),
        f"# {config.model.title} for sentiment, trained on {audit.data}",
        _about(trained, facts["base_model"]),
        f"## Use\n\nIn this folder:\n\n```python\n{loading_code(trained, facts['base_model'])}\n```",
        _frame(trained),
        f"## Data\n\n{audit.data}: "
        + ", ".join(f"{count:,} {split} rows" for split, count in audit.rows.items())
        + ".",
        _measured(result, audit.rows["test"]),
        "## Intended use and limits\n\nTexts like those above; of other kinds, times and languages nothing is known. "
        f"Whatever a text says, the answer is {_answer(trained)}. Decide nothing about people by it.",
        f"## Licences\n\n- base model: {model_origin(trained)}\n- data: {data_origin(config_file)}",
        f"## How to repeat it\n\n    {command()}\n\nRun {result.identity}"
        + (f", MLflow run {result.run_id}." if result.run_id else "."),
    ]
    (result.weights / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front(trained: Trained) -> str:
    """Return the metadata that the hub reads."""
    library = "peft" if (trained.folder / "adapter_config.json").is_file() else "transformers"
    path = trained.model.path
    base = f"base_model: {path}\n" if path is not None and not is_local(path) else ""
    return f"---\nlibrary_name: {library}\npipeline_tag: text-classification\n{base}tags:\n- sentexp\n- sentiment\n---"


def _about(trained: Trained, base: str) -> str:
    """Return what these weights are."""
    kinds = {
        "adapter": "an adapter with its head",
        "model": "all weights",
        "head": "a head",
        "prompt": "nothing trained:",
    }
    kind = kinds.get(trained.folder.name, "weights")
    kind = "an adapter" if kind.startswith("an adapter") and trained.answers else kind
    stored = trained.storage.quantization.name
    packed = "" if stored == "none" else f"; it was stored in {stored}, and unpacked the probabilities differ a little"
    how = "a language model that answers a prompt with a label word" if trained.answers else "a classification head"
    return "\n".join(
        [
            f"- weights: {kind} over {trained.model.title}, revision {trained.revision[:12]}{packed}",
            f"- base model at: {base}",
            f"- task: sentiment of a text, by {how}",
            _output(trained),
            f"- template: `{_plain(trained.prompt.template)}`",
        ]
    )


def _output(trained: Trained) -> str:
    if trained.scale is not None:
        return "- output: a score, as the numbers of the data"
    labels = f"- labels, in the order of the probabilities: {', '.join(trained.labels)}"
    if trained.thresholds is None:
        return labels
    pairs = zip(trained.labels, trained.thresholds, strict=True)
    held = ", ".join(f"{label} {threshold:.4f}" for label, threshold in pairs)
    return f"{labels}\n- each by itself: the sigmoid of its logit, and it holds from a threshold on, which is {held}"


def _answer(trained: Trained) -> str:
    listed = ", ".join(trained.labels)
    return {
        TargetKind.scores: "a number",
        TargetKind.classes: f"one of {listed}",
        TargetKind.label_sets: f"any of {listed}, or none",
    }[trained.kind]


def _frame(trained: Trained) -> str:
    blanks = "Blanks around a text were removed. " if trained.strip else ""
    whole = "text" if trained.text_pair is None else "pair"
    lost = "its end" if trained.text_pair is None else "the end of its first text"
    without = f"Without the template the {'scores' if trained.scale is not None else 'probabilities'} differ. {blanks}"
    if trained.kind is not TargetKind.classes:
        return f"{without}A {whole} of more than {trained.max_length} tokens lost {lost}, before the template."
    return (
        f"{without}A {whole} of more than {trained.max_length} tokens "
        f"lost {lost}, before the template. At the temperature {trained.temperature:.3f} (logits divided by it) the "
        "probabilities are calibrated."
    )


def _plain(text: str) -> str:
    """Return a text in one line, as it is written in code."""
    return re.sub(r"`", "'", text.encode("unicode_escape").decode() if not text.isprintable() else text)


def _measured(result: Result, rows: int) -> str:
    """Return the test metrics, the accuracy of classes with its interval (Wilson 1927)."""
    lines = [f"| {name} | {result.metrics[f'test/{name}']:.4f} |" for name in SHOWN if f"test/{name}" in result.metrics]
    table = "| metric | value |\n| --- | ---: |\n" + "\n".join(lines)
    if result.kind is not TargetKind.classes:
        return f"## Measured\n\nOn {rows:,} test rows.\n\n{table}"
    right = sum(result.confusion[number][number] for number in range(len(result.labels)))
    low, high = wilson(right, rows)
    interval = f"the 95 % interval of accuracy is {low:.4f} to {high:.4f}"
    return f"## Measured\n\nOn {rows:,} test rows; {interval}.\n\n{table}"
