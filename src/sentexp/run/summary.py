"""What the evaluations of a run come to: answers, calibrated metrics, the best checkpoint, baselines."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from sentexp.config import TargetKind
from sentexp.config.metric_names import MEASURED
from sentexp.distributed import processes
from sentexp.metrics.generated_answers import irregular_tokens, read_answers
from sentexp.metrics.slice_metrics import slice_scores
from sentexp.metrics.target import Target
from sentexp.run.inputs import RunInputs
from sentexp.run.result import Baseline
from sentexp.tracking.run_dir import RunDir
from sentexp.training.evaluation import Evaluation


@dataclass(kw_only=True, slots=True)
class AnswerCounts:
    """What a language model answered to the test rows: counts as tags, as people read them, and as metrics."""

    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class TestSummary:
    """The result of a test beyond the metrics of the evaluation itself; see `Result` for its parts.

    `metrics` are those after calibration, of slices and of written answers.
    """

    temperature: float
    answers: dict[str, str]
    metrics: dict[str, float]
    confusion: list[list[int]]
    reliability: dict[str, list[tuple[float, float, int]]]


@processes.main_process_only
def summarise_test(
    inputs: RunInputs, target: Target, validation: tuple[Tensor, Tensor], test: Evaluation
) -> TestSummary:
    """Fit the temperature on validation logits and targets, and measure the test split after it, and its slices."""
    temperature = target.temperature(*validation)
    answers = count_answers(inputs, test)
    calibrated = target.calibrated(test.logits, test.targets, temperature)
    metrics = answers.metrics | {f"test/{name}": value for name, value in calibrated.items()}
    metrics |= {"temperature": temperature} | slice_scores(inputs.examples, test.logits, target)
    return TestSummary(
        temperature=temperature,
        answers=answers.tags,
        metrics=metrics,
        confusion=target.confusion(test.logits, test.targets),
        reliability=target.reliability(test.logits, test.targets, temperature),
    )


def count_answers(inputs: RunInputs, test: Evaluation) -> AnswerCounts:
    """Return the irregular outputs by first token, and of the answers that were written, where there are any."""
    counts = AnswerCounts()
    tokenizer = inputs.tokenizer
    if test.first_token is not None and test.irregular is not None:
        counts.tags["irregular_outputs"] = str(irregular_tokens(tokenizer, test.first_token, test.irregular))
    if test.generated is not None:
        read, irregular = read_answers(tokenizer, test.generated, inputs.prompt.words, inputs.prompt.answer_prefix_ids)
        right = sum(label == target for label, target in zip(read, test.targets.tolist(), strict=True))
        counts.tags["irregular_generations"] = str(irregular)
        counts.metrics["test/irregular_generations"] = float(irregular.total())
        counts.metrics["test/generated_accuracy"] = right / len(read)
    return counts


def differences(metrics: Mapping[str, float], baselines: Mapping[str, Baseline], kind: TargetKind) -> dict[str, float]:
    """Return by how much the run's test metrics are above those of each baseline, and these themselves.

    Args:
        metrics: of the run.
        baselines: by name.
        kind: what is predicted.
    """
    values = {}
    for name, baseline in baselines.items():
        for metric in kind.short:
            theirs = baseline.metrics.get(f"test/{metric}", math.nan)
            values[f"baseline/{name}/{metric}"] = theirs
            values[f"difference/{name}/{metric}"] = metrics.get(f"test/{metric}", math.nan) - theirs
    return {name: value for name, value in values.items() if math.isfinite(value)}


@processes.main_process_only
def best_metrics(run_dir: RunDir, step: int) -> dict[str, float]:
    """Return the validation metrics at the best checkpoint, and its step."""
    names = (*MEASURED, "off_label_mass", "irregular_outputs")
    values = {f"best/{name}": dict(run_dir.history(f"validation/{name}")) for name in names}
    return {name: points[step] for name, points in values.items() if step in points} | {"best/step": step}
