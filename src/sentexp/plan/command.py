"""`python -m sentexp plan`, and `sweep.dry_run=true`: what would be trained, what it costs, and advice. Writes nothing.

Runs that cost the same are timed once: a few steps of one of them, on this machine.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from sentexp.config import BOOKKEEPING, Config, Strategy, flatten
from sentexp.data.audit import DataAudit
from sentexp.errors import OutOfMemory, UserError
from sentexp.plan.advice import advise
from sentexp.plan.report import Fused, print_advice, print_fusion, print_runs, print_times
from sentexp.plan.run_states import Costs, Planned, survey
from sentexp.plan.timing import measure
from sentexp.plan.workload import reads_validation, workload
from sentexp.run.build import keeps_dequantized
from sentexp.run.cache import clear_cache
from sentexp.run.fusing import fuse
from sentexp.run.inputs import RunInputs, with_shots
from sentexp.run.report import print_data
from sentexp.system.console import say
from sentexp.system.memory import GIB
from sentexp.tracking.identity import digest_of
from sentexp.tracking.next_steps import sentexp_command
from sentexp.training.batch_plan import halve_micro_batch

COSTLY = ("trainer.padding_free", "trainer.compile", "trainer.cuda_graphs", "model.keep_dequantized")
"""Keys that change no result, and what it costs."""
FREE = (
    *(key for key in BOOKKEEPING if key not in COSTLY),
    "seed",
    "data.",
    "model.path",
    "optim.",
    "peft.alpha",
    "peft.usual_lr",
    "peft.use_rslora",
    "task.focal_gamma",
    "task.label_smoothing",
    "task.head_init",
    "task.shots",
    "trainer.accumulate_grad_batches",
    "trainer.average",
    "trainer.early_stopping_patience",
    "trainer.eval_steps",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.monitor",
    "trainer.unfreeze",
)
"""Keys that do not change what a batch of a given shape costs; those of `data` do by the shapes alone."""


def plan(configs: list[Config], words: Sequence[str] | None = None) -> list[Planned]:
    """Print what runs of these configurations would do, and what that costs; train nothing, and write nothing.

    The cache of models, data and tokens is filled, as it would be by the runs.

    Args:
        configs: of the runs.
        words: of the command line that would train them, where there is one.
    """
    runs = survey([in_one_process(config) for config in configs])
    show_data(runs)
    measure_kinds(runs)
    baselines = _baseline_seconds(runs)
    print_runs(runs)
    print_times(runs, baselines)
    print_fusion(_fusions(runs))
    print_advice(advise(runs))
    if words is not None and any(run.is_left for run in runs):
        say(f"To try every path of it in about a minute: {sentexp_command('--quick', *words)}")
    clear_cache()
    return runs


def in_one_process(config: Config) -> Config:
    """Return the configuration for one process, and say so where it is for several."""
    strategy = config.trainer.strategy
    if strategy is Strategy.single:
        return config
    say(f"Planned for one process: trainer={strategy.name} divides each batch between several.")
    return replace(config, trainer=replace(config.trainer, strategy=Strategy.single))


def show_data(runs: list[Planned]) -> None:
    """Print each data set once."""
    seen: list[DataAudit] = []
    for run in runs:
        if run.costs is not None and run.costs.inputs is not None and run.costs.inputs.data_audit not in seen:
            seen.append(run.costs.inputs.data_audit)
            print_data(run.costs.inputs.data_audit)


def measure_kinds(runs: list[Planned], patience: float = math.inf) -> list[list[Planned]]:
    """Time a few steps for each kind of run that is left, and return the runs of each kind.

    Args:
        runs: that are planned.
        patience: see `measure`.
    """
    kinds: dict[str, list[Planned]] = {}
    for run in runs:
        if run.costs is not None and run.costs.inputs is not None:
            kinds.setdefault(_cost_key(run.costs, run.costs.inputs), []).append(run)
    for number, alike in enumerate(kinds.values(), 1):
        say(f"Timing a few steps, {number}/{len(kinds)}: {alike[0].name}")
        first, *others = [run.costs for run in alike if run.costs is not None]
        assert first.inputs is not None
        if keeps_dequantized(first.inputs):
            say("Packed weights are unpacked once for the whole run; model.keep_dequantized=false keeps them packed.")
        _measure_until_it_fits(first, first.inputs, patience)
        for costs in others:
            costs.measured, costs.unmeasured = first.measured, first.unmeasured
            if first.halved:
                costs.take_batches(first.trainer)
    return list(kinds.values())


def _measure_until_it_fits(costs: Costs, inputs: RunInputs, patience: float) -> None:
    """Time a run, at half the micro-batch whenever memory runs out (law 9); not at all where it must."""
    needed = costs.arithmetic.memory(costs.largest_batch, inputs.precision)
    if inputs.device.type == "cuda":  # there running out is an error that tells, not the end of this process
        needed = costs.arithmetic.weight_bytes(inputs.precision)
    if needed > costs.available:
        costs.unmeasured = f"about {needed / GIB:.1f} GiB by arithmetic, and {costs.available / GIB:.1f} GiB are free"
        return
    while True:
        config = replace(inputs.config, trainer=costs.trainer)
        try:
            costs.measured = measure(replace(inputs, config=config), costs.work, patience)
            return
        except UserError as error:
            costs.unmeasured = str(error)
            return
        except OutOfMemory as error:
            least = 1 if costs.trainer.max_tokens is None else 2 * costs.largest_batch.width
            smaller = halve_micro_batch(costs.trainer, least)
            if smaller is None:
                costs.unmeasured = (
                    f"out of memory at trainer.{costs.trainer.fills_by}={costs.trainer.micro_batch} ({error})"
                )
                return
            costs.take_batches(smaller)


def _cost_key(costs: Costs, inputs: RunInputs) -> str:
    """Return the same digest for runs whose steps cost the same."""
    config = replace(inputs.config, trainer=costs.trainer)
    keys = {key: value for key, value in flatten(config).items() if not key.startswith(FREE)}
    parts = [costs.work.train, costs.work.validation, costs.work.test]
    largest = [asdict(part.largest_size) for part in parts]
    kinds = [type(config.peft).__name__, type(config.task).__name__, config.optim.name.name, config.optim.momentum > 0]
    return digest_of(keys, kinds, largest, inputs.backbone.revision, inputs.prompt.answers)


def _fusions(runs: list[Planned]) -> list[Fused]:
    """Return which of the runs that are left train together, and why others do not."""
    left = [run for run in runs if run.is_left]
    if len(left) < 2:  # noqa: PLR2004 (a sweep)
        return []
    fusion = fuse([run.config for run in left])
    groups = [
        Fused(names=[left[n].name for n in group], gain=_gain([left[n] for n in group])) for group in fusion.groups
    ]
    why: dict[str, list[str]] = {}
    for number, reason in fusion.reasons.items():
        why.setdefault(reason, []).append(left[number].name)
    return groups + [Fused(names=names, reason=reason) for reason, names in why.items()]


def _gain(runs: list[Planned]) -> float | None:
    """Return how many times as fast runs train together: what a batch costs beside its tokens is paid once."""
    measured = [run.costs for run in runs if run.costs is not None and run.costs.measured is not None]
    speeds = [costs.measured.training for costs in measured if costs.measured and costs.measured.training]
    if len(speeds) < len(runs):
        return None
    alone = [
        speed.fixed + speed.per_token * float(costs.work.train.computed.mean())
        for speed, costs in zip(speeds, measured, strict=True)
    ]
    once = max(speed.fixed for speed in speeds)
    return sum(alone) / (sum(alone) - sum(speed.fixed for speed in speeds) + once)


def _baseline_seconds(runs: list[Planned]) -> dict[str, float]:
    """Return how long the baselines take that are missing and read rows with the model, by identity."""
    seconds: dict[str, float] = {}
    for run in runs:
        if run.costs is None or run.costs.measured is None or run.costs.inputs is None:
            continue
        measured, work = run.costs.measured, run.costs.work
        for kind, identity in run.costs.baselines.items():
            if kind == "linear_probe":
                parts = [work.train, work.validation, work.test]
                seconds[identity] = sum(map(measured.evaluation.seconds, parts))
            elif kind == "untuned":
                base = with_shots(run.costs.inputs)
                shown = workload(base, base.tokens, run.costs.trainer)
                prior = measured.evaluation.seconds(shown.validation) if reads_validation(base) else 0.0
                seconds[identity] = measured.test_seconds(shown) + prior
    return seconds
