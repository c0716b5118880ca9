"""Advice on runs that are not trained yet: each rule gives a sentence with its reason and a key, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from sentexp.compare.sample_size import detectable, rows_needed, standard_error
from sentexp.config import Lora, Precision, Quantization, TargetKind
from sentexp.data.audit import NOTED_CUT
from sentexp.plan.run_states import Costs, Planned
from sentexp.system.console import duration
from sentexp.system.device import choose_precision
from sentexp.system.memory import GIB

USUAL_ACCURACY = 0.85
POINT = 0.01
MUCH_PADDING = 0.2
MUCH_LONGER = 1.2
MOST_TEST_FRACTION = 0.5


@dataclass(kw_only=True, slots=True)
class Outlook:
    """The test accuracy to expect: `seen` in finished runs of the sweep, or assumed."""

    accuracy: float
    seen: bool


def outlook(runs: list[Planned]) -> Outlook:
    """Return the test accuracy that finished runs have on the average, else `USUAL_ACCURACY`."""
    results = [run.result.metrics for run in runs if run.result is not None]
    seen = [metrics["test/accuracy"] for metrics in results if "test/accuracy" in metrics]
    return Outlook(accuracy=fmean(seen) if seen else USUAL_ACCURACY, seen=bool(seen))


def advise(runs: list[Planned]) -> list[str]:
    """Return what would serve the runs that are left better, each sentence once, with the runs that it is for."""
    left = {run.name: run.costs for run in runs if run.is_left and run.costs is not None}
    expected = outlook(runs)
    affected: dict[str, list[str]] = {}
    for rule in RULES:
        for name, costs in left.items():
            sentence = rule(costs, expected)
            if sentence is not None:
                affected.setdefault(sentence, []).append(name)
    sentences = [text if len(names) == len(left) else f"{', '.join(names)}: {text}" for text, names in affected.items()]
    seed = one_seed(runs)
    return sentences if seed is None else [*sentences, seed]


def does_not_fit(run: Costs, _: Outlook) -> str | None:
    """The largest batch needs more memory than there is."""
    if run.inputs is None:
        return None
    precision = run.inputs.precision
    if run.halved:
        fits = f"{run.trainer.as_typed}, which does"
        return f"This batch does not fit, as was tried: use {fits}; the effective batch is the same."
    needed = run.arithmetic.memory(run.largest_batch, precision)
    if run.measured is not None or needed <= run.available:
        return None
    size = run.largest_batch
    finding = (
        f"This batch does not fit: {size.rows} rows of up to {size.width} tokens take about {needed / GIB:.1f} GiB by "
        f"arithmetic, and {run.available / GIB:.1f} GiB are free here"
    )
    return f"{finding}: {_smaller(run, precision)}."


def _smaller(run: Costs, precision: Precision) -> str:
    """Return the first remedy that fits: a smaller micro-batch, recomputation, packed weights, or nothing."""
    arithmetic = run.arithmetic
    checkpointing = replace(arithmetic.config, trainer=replace(arithmetic.config.trainer, gradient_checkpointing=True))
    packed = replace(checkpointing, peft=replace(checkpointing.peft, quantization=Quantization.nf4))
    remedies = [(arithmetic, "use"), (replace(arithmetic, config=checkpointing), "use " + CHECKPOINTING)]
    if isinstance(arithmetic.config.peft, Lora):
        remedies.append((replace(arithmetic, config=packed), f"use peft=qlora, {CHECKPOINTING}"))
    for changed, words in remedies:
        fitting = changed.halved_until_it_fits(run.largest_batch, precision, run.available)
        if fitting is not None:
            return f"{words} {fitting.as_typed}, the same effective batch"
    return "no batch does; use a smaller model, a shorter data.max_length, or a larger machine"


CHECKPOINTING = "trainer.gradient_checkpointing=true and"


def packed_needlessly(run: Costs, _: Outlook) -> str | None:
    """Weights are packed although they fit as they are."""
    peft = run.spec.config.peft
    if peft.quantization is Quantization.none or run.inputs is None:
        return None
    config = replace(run.arithmetic.config, peft=replace(peft, quantization=Quantization.none))
    plain = replace(run.arithmetic, config=config)
    precision = run.inputs.precision
    if not plain.fits(run.largest_batch, precision, run.available):
        return None
    return (
        f"peft.quantization={peft.quantization.name} costs time, as every layer is unpacked in every step, and is not "
        f"needed: with weights in {precision.name} ({plain.weight_bytes(precision) / GIB:.1f} GiB) the largest batch "
        f"takes about {plain.memory(run.largest_batch, precision) / GIB:.1f} of the {run.available / GIB:.0f} GiB "
        "that are free here: use peft.quantization=none."
    )


def slow_arithmetic(run: Costs, _: Outlook) -> str | None:
    """Float32 is asked for where bfloat16 is native."""
    if run.inputs is None or run.spec.config.trainer.precision is not Precision.fp32:
        return None
    if choose_precision(Precision.auto, run.inputs.device) is not Precision.bf16:
        return None
    return (
        "trainer.precision=fp32 multiplies in float32, and this machine multiplies bf16 natively, which takes half the "
        "memory and less time: use trainer.precision=auto."
    )


def much_padding(run: Costs, _: Outlook) -> str | None:
    """A batch holds rows of different lengths."""
    if run.spec.config.trainer.group_by_length or not run.work.micro_batches:
        return None
    share = 1 - run.work.train.tokens / run.work.train.computed.sum()
    if share <= MUCH_PADDING:
        return None
    return f"{share:.0%} of the training tokens are padding: trainer.group_by_length=true leaves little of it."


def long_evaluations(run: Costs, _: Outlook) -> str | None:
    """The validation split takes longer than the training."""
    if run.measured is None or not run.work.micro_batches:
        return None
    training, validating = run.measured.training_seconds(run.work), run.measured.validation_seconds(run.work)
    if validating <= MUCH_LONGER * training:
        return None
    finding = f"Evaluating on validation takes {duration(validating)}, longer than training ({duration(training)})"
    if run.work.evaluations > 1:
        return f"{finding}: evaluate less often than {run.work.evaluations} times with a larger trainer.eval_steps."
    rows = max(1, int(run.work.validation.rows.sum() * training / validating))
    return f"{finding}: data.validation_subset={rows} takes as long as training."


def cut_texts(run: Costs, _: Outlook) -> str | None:
    """The maximum length takes the ends of training texts."""
    if run.inputs is None:
        return None
    tokens = run.inputs.tokens["train"]
    cut = float(np.mean(tokens.cut))
    longest = int(np.quantile(tokens.text_lengths, 1 - NOTED_CUT, method="higher"))
    if cut <= NOTED_CUT or longest + tokens.frame + run.spec.prompt.max_answer_tokens > run.spec.positions:
        return None
    return (
        f"data.max_length={run.spec.config.data.max_length} takes the end from {cut:.1%} of the training texts: "
        f"data.max_length={longest} would leave 99 % of them whole, for more time and memory."
    )


def few_test_rows(run: Costs, expected: Outlook) -> str | None:
    """The test split cannot separate one point of accuracy."""
    if run.spec.examples.kind is not TargetKind.classes:
        return None
    rows, accuracy = int(run.work.test.rows.sum()), expected.accuracy
    disagreement = _disagreement(accuracy)
    smallest = detectable(rows, disagreement)
    if smallest <= POINT:
        return None
    source = "the mean of finished runs" if expected.seen else "assumed"
    finding = (
        f"{rows:,} test rows cannot separate one point of accuracy. At {accuracy:.2f} ({source}) the standard error is "
        f"{100 * standard_error(accuracy, rows):.1f} points. If exactly one of two runs is right on {disagreement:.0%} "
        f"of the rows (assumed: half of the errors are shared), McNemar's test at 5 % misses a difference below "
        f"{100 * smallest:.1f} points in more than one of five cases. One point takes "
    )
    needed = rows_needed(POINT, disagreement)
    return f"{finding}about {needed:,.0f} rows{_more_test_rows(run, rows, needed)}."


def _more_test_rows(run: Costs, rows: int, needed: float) -> str:
    """Return how the test split can grow where it is carved; a test split of the source is what it is."""
    fraction = run.spec.config.data.test_fraction * needed / rows
    if "test" not in run.spec.examples.carved or fraction > MOST_TEST_FRACTION:
        return ""
    return f": data.test_fraction={fraction:.2g}"


def few_validation_rows(run: Costs, expected: Outlook) -> str | None:
    """The best checkpoint and the best run are chosen on a part of the validation rows."""
    rows, available = int(run.work.validation.rows.sum()), run.spec.examples.available["validation"]
    error = standard_error(expected.accuracy, rows)
    if (
        run.spec.examples.kind is not TargetKind.classes
        or rows >= available
        or error <= POINT
        or long_evaluations(run, expected) is not None
    ):
        return None
    return (
        f"Checkpoints and runs are chosen on {rows:,} validation rows, where the standard error of an accuracy of "
        f"{expected.accuracy:.2f} is {100 * error:.1f} points: data.validation_subset=null takes all {available:,} "
        f"({100 * standard_error(expected.accuracy, available):.1f} points)."
    )


def one_seed(runs: list[Planned]) -> str | None:
    """All runs of a sweep have one seed."""
    different = {run.identity for run in runs if run.identity is not None}
    if len(different) < 2 or len({run.config.seed for run in runs}) > 1 or not any(run.is_left for run in runs):  # noqa: PLR2004 (one run is compared with nothing)
        return None
    return (
        f"All runs have seed={runs[0].config.seed}, so the noise from seed to seed is not measured, and a difference "
        "may be no more than that: add seed=1,2,3."
    )


def _disagreement(accuracy: float) -> float:
    """Return the share of rows on which one of two runs is right and the other wrong, half of their errors shared."""
    return 1 - accuracy


RULES: tuple[Callable[[Costs, Outlook], str | None], ...] = (
    does_not_fit,
    packed_needlessly,
    slow_arithmetic,
    much_padding,
    cut_texts,
    long_evaluations,
    few_validation_rows,
    few_test_rows,
)
