"""What the result of each baseline depends on: its identity, by which it is found again."""

from typing import Any

from sentexp.config import (
    BiasOnly,
    CausalLM,
    FullFineTuning,
    Precision,
    PriorCorrection,
    Quantization,
    TargetKind,
    Untuned,
)
from sentexp.config.metric_names import SCORE
from sentexp.data.text_hash import split_digest
from sentexp.run.inputs import RunInputs
from sentexp.tracking.identity import digest_of

WORD = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|\w+"  # Chinese and Japanese are written without blanks: a word is a letter


MARKS = {TargetKind.classes: [], TargetKind.scores: [SCORE], TargetKind.label_sets: ["label sets"]}
"""What is added to the identities of each kind."""
TITLES = {
    TargetKind.classes: ("majority class", "TF-IDF + logistic regression"),
    TargetKind.scores: ("mean score", "TF-IDF + ridge regression"),
    TargetKind.label_sets: ("most frequent set", "TF-IDF + logistic regressions"),
}


def baseline_identities(inputs: RunInputs, base: RunInputs) -> dict[str, tuple[str, str]]:
    """Return titles and identities of the baselines of a run, by name; its untuned base reads the prompts of `base`."""
    mark, (constant, tfidf) = MARKS[inputs.examples.kind], TITLES[inputs.examples.kind]
    depends_on: dict[str, tuple[str, list[Any]]] = {"majority": (constant, mark), "tfidf": (tfidf, [WORD, *mark])}
    if not isinstance(inputs.config.task, CausalLM):
        depends_on["linear_probe"] = ("linear probe", [*_model_parts(inputs), *mark])
    elif not isinstance(inputs.config.peft, Untuned):
        shots = f" ({inputs.config.task.shots} shots)" if base is not inputs else ""
        depends_on["untuned"] = (f"untuned base{shots}", _untuned_parts(base))
    data = {name: [] if name == "untuned" else [inputs.digest] for name in depends_on}  # the others learn from train
    return {name: (title, digest_of(name, parts, data[name])) for name, (title, parts) in depends_on.items()}


def untuned_identity(base: RunInputs) -> str:
    """Return the identity of an untuned language model's result: a run of `peft=none` is one, too."""
    return digest_of("untuned", _untuned_parts(base), [])


def _untuned_parts(base: RunInputs) -> list[Any]:
    """Return what the result of an untuned language model depends on: model, prompt, scoring and test rows."""
    task = base.config.task
    assert isinstance(task, CausalLM)
    scoring = [task.length_normalization, task.calibration.name, task.generate]
    prior = split_digest(base.examples.validation) if task.calibration is PriorCorrection.batch else ""
    slices = base.examples.test.column_names
    return [*_model_parts(base), scoring, prior, slices, split_digest(base.examples.test)]


def _model_parts(inputs: RunInputs) -> list[Any]:
    """Return what the features of the frozen backbone depend on."""
    config = inputs.config
    stored: list[Any] = [
        Precision.fp32.name if isinstance(config.peft, FullFineTuning | BiasOnly) else inputs.precision.name
    ]
    if config.peft.quantization is not Quantization.none:
        stored += [config.peft.quantization.name, config.peft.double_quant, config.peft.compute_dtype.name]
    prompt, limit = inputs.prompt.to_dict(), inputs.tokens["test"].limit
    return [inputs.backbone.revision, stored, inputs.precision.name, prompt, limit]
