"""What the test rows show to have gone wrong, a line each, with what to try."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sentexp.config import Config, TargetKind, Untuned, target_kind
from sentexp.tracking.next_steps import sentexp_command
from sentexp.tracking.provenance import given_words

if TYPE_CHECKING:
    from sentexp.run.result import Result

MOST_LISTED = 3
CHANCE = 0.5
"""The area under the ROC curve of chance."""


def symptoms_of(result: "Result", config: Config) -> list[str]:
    """Return a sentence for each symptom of the test rows."""
    match result.kind:
        case TargetKind.scores:
            return score_symptoms(result, config)
        case TargetKind.label_sets:
            return label_symptoms(result, config)
    return symptoms(result.labels, result.confusion, config)


def symptoms(labels: Sequence[str], confusion: Sequence[Sequence[int]], config: Config) -> list[str]:
    """Return a sentence for each: one answer to every row, worse than the commonest class, classes never answered.

    Args:
        labels: names of the classes.
        confusion: counts of the test rows, true class by predicted class.
        config: of the run.
    """
    true = [sum(row) for row in confusion]
    answers = [sum(column) for column in zip(*confusion, strict=True)]
    rows, given = sum(true), [label for label, count in zip(labels, answers, strict=True) if count]
    right = sum(confusion[number][number] for number in range(len(labels)))
    most = max(true)
    found = []
    constant = len(given) == 1 and sum(count > 0 for count in true) > 1
    if constant:
        found.append(f"Every test row is called {given[0]}, so nothing was learned: {_try_other_steps(config)}.")
    if right < most:
        common = labels[true.index(most)]
        found.append(
            f"Accuracy {right / rows:.4f} is below {most / rows:.4f}, which calling every test row {common} has: "
            f"{'see above' if constant else _try_other_steps(config)}."
        )
    never = [label for label, count, answer in zip(labels, true, answers, strict=True) if count and not answer]
    if never and not constant:
        found.append(f"No test row is called {_listed(never)}: {_try_balance(config)}.")
    return found


def score_symptoms(result: "Result", config: Config) -> list[str]:
    """Return a sentence where the scores of the test rows are no better than the mean of the training scores."""
    loss = result.metrics["test/loss"]
    if loss < 1:
        return []
    return [
        f"The mean squared error of the test rows is {loss:.2f} times the variance of the training scores, and always "
        f"saying their mean has about 1: {_try_other_steps(config)}."
    ]


def label_symptoms(result: "Result", config: Config) -> list[str]:
    """Return a sentence where labels of test rows are never said, or are ranked no better than by chance."""
    found = []
    counted = [(label, row) for label, row in zip(result.labels, result.confusion, strict=True) if row[2] + row[3]]
    never = [label for label, (_, wrong, _, right) in counted if not wrong + right]
    if never:
        found.append(f"No test row is said to have {_listed(never)}: {_try_balance(config)}.")
    if result.metrics.get("test/auroc_macro", 1.0) <= CHANCE:
        found.append(f"Labels are ranked no better than by chance: {_try_other_steps(config)}.")
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")


def _try_other_steps(config: Config) -> str:
    if isinstance(config.peft, Untuned):
        return "this model is untuned, try peft=lora, or another task.template"
    rate = config.optim.lr
    of_data = [word for word in given_words(in_sweep=False) or [] if word.lstrip("+").startswith("data")]
    audit = sentexp_command("audit", *of_data)
    return (
        f"try optim.lr={rate / 5:.2g} where the training loss jumped or grew, optim.lr={rate * 5:.2g} or more "
        f"trainer.max_epochs where it hardly fell, and look for wrong labels with {audit}"
    )


def _try_balance(config: Config) -> str:
    if isinstance(config.peft, Untuned):
        return "this model is untuned, try task.calibration=batch, other task.label_words, or peft=lora"
    unweighted = config.data.class_weights is None and config.data.sampling.name == "natural"
    if unweighted and target_kind(config.task) is TargetKind.classes:
        return "try data.class_weights=balanced or data.sampling=balanced_labels, and more rows of it"
    return "try more rows of it, or more trainer.max_epochs"
