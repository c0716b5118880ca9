"""The state of each run of a sweep, and what it has left to compute; nothing is written."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from sentexp.config import Config, TrainerConfig, flatten, task_name
from sentexp.errors import UserError
from sentexp.models.adapters import ParameterAudit
from sentexp.plan.estimate import Arithmetic, Shape, shape_of
from sentexp.plan.timing import Measurement
from sentexp.plan.workload import Size, Workload, workload
from sentexp.run.baselines import missing_baselines
from sentexp.run.build import outline_model
from sentexp.run.cache import cached
from sentexp.run.inputs import RunInputs, RunSpec, prepare_inputs, resolve_inputs, run_identity, tokenize_splits
from sentexp.run.resolve import resolve_config
from sentexp.run.result import Result, find_result, lacks_baselines
from sentexp.system.memory import GIB, free_memory_gib
from sentexp.tracking.run_dir import is_locked, read_state
from sentexp.training.checkpoint import LAST, read_checkpoint


class Standing(StrEnum):
    """The state of a run."""

    finished = "finished"
    running = "running"
    to_resume = "to resume"
    to_do = "to do"
    same = "same run"
    wrong = "cannot start"


LEFT = (Standing.to_resume, Standing.to_do)


@dataclass(kw_only=True, slots=True)
class Costs:
    """What is left of a run to compute, and what that costs.

    `trainer` is its loop, with the smaller batches that an earlier attempt found to fit; `share_left` the share of the
    training that is left. `inputs` are missing, with the reason in `unmeasured`, where this machine cannot do the
    run; `available` is the memory here in bytes. `measured` comes later, and `halved` says that memory ran out then.
    """

    spec: RunSpec
    inputs: RunInputs | None
    trainer: TrainerConfig
    work: Workload
    arithmetic: Arithmetic
    available: float
    share_left: float
    baselines: dict[str, str] = field(default_factory=dict)
    measured: Measurement | None = None
    unmeasured: str = ""
    halved: bool = False

    @property
    def largest_batch(self) -> Size:
        """The size that no training batch exceeds."""
        return self.work.train.largest_size

    def training_seconds(self, measured: Measurement) -> float:
        """Return how long the training will take, without evaluations."""
        return measured.training_seconds(self.work) * self.share_left

    def evaluation_seconds(self, measured: Measurement) -> float:
        """Return how long the evaluations will take, on the validation and the test split."""
        return measured.validation_seconds(self.work) * self.share_left + measured.test_seconds(self.work)

    def take_batches(self, trainer: TrainerConfig) -> None:
        """Continue with smaller batches of the same effective size, as the run itself would when memory runs out."""
        self.trainer, self.halved = trainer, True
        tokens = tokenize_splits(self.spec) if self.inputs is None else self.inputs.tokens
        self.work = workload(self.spec, tokens, self.trainer)
        self.arithmetic = replace(self.arithmetic, config=replace(self.arithmetic.config, trainer=self.trainer))


@dataclass(kw_only=True, slots=True)
class Planned:
    """A run and its state; `note` says more about that. `costs` are of what is left: training, or baselines."""

    name: str
    config: Config
    standing: Standing
    note: str = ""
    identity: str | None = None
    result: Result | None = None
    costs: Costs | None = None

    @property
    def is_left(self) -> bool:
        """Whether the run is to be trained."""
        return self.standing in LEFT


def survey(configs: list[Config]) -> list[Planned]:
    """Return the states of the runs, and what they have to compute."""
    runs: list[Planned] = []
    for config in configs:
        runs.append(_look(resolve_config(config), runs))
    return runs


def _look(config: Config, earlier: list[Planned]) -> Planned:
    """Return the state of a run, and what it has left to compute."""
    run = Planned(name=config.sweep.name or "this run", config=config, standing=Standing.to_do)
    try:
        spec = resolve_inputs(config)
        run.identity = run_identity(spec)
        first = next((other for other in earlier if other.identity == run.identity), None)
        if first is not None:
            run.standing, run.note = Standing.same, f"the same run as {first.name}"
            return run
        run.result = find_result(config, run.identity)
        folder = Path(config.output_dir) / run.identity
        state = read_state(folder)
        if is_locked(folder):
            run.standing, run.note = Standing.running, "another process trains it"
        elif run.result is not None and not config.sweep.rerun:
            run.standing = Standing.finished
            if lacks_baselines(run.result, config):
                run.costs = _costs(spec, 0, {})
        else:
            step = _last_step(folder) if state else 0
            if state:
                run.standing = Standing.to_resume
                run.note = f"resumes after step {step}" if step else "begins again: no checkpoint was written"
            run.costs = _costs(spec, step, state.get("fits", {}))
    except UserError as error:
        run.standing, run.note = Standing.wrong, str(error)
    return run


def _last_step(folder: Path) -> int:
    """Return the optimizer step of the checkpoint in a folder; 0 without one."""
    file = folder / LAST
    return int(read_checkpoint(file)["global_step"]) if file.is_file() else 0


def _costs(spec: RunSpec, step: int, fits: dict[str, Any]) -> Costs:
    """Return what a run has to compute after an optimizer step, with the batches that are known to fit."""
    config, inputs, available, unmeasured = spec.config, None, 0.0, ""
    try:
        inputs = prepare_inputs(spec, show=False)
        available = free_memory_gib(inputs.device) * GIB
    except UserError as error:
        unmeasured = str(error)
    trainer = replace(config.trainer, **fits)
    work = workload(spec, tokenize_splits(spec) if inputs is None else inputs.tokens, trainer)
    shape, parameters = _outline(spec)
    return Costs(
        spec=spec,
        inputs=inputs,
        trainer=trainer,
        work=work,
        arithmetic=Arithmetic(config=replace(config, trainer=trainer), shape=shape, parameters=parameters),
        available=available,
        share_left=1 - step / work.steps if work.steps else 1.0,
        baselines=missing_baselines(inputs) if config.baseline and inputs is not None else {},
        unmeasured=unmeasured,
    )


def _outline(spec: RunSpec) -> tuple[Shape, ParameterAudit]:
    config = spec.config
    key: list[Any] = [spec.backbone.revision, task_name(config.task), spec.examples.labels]
    key += [flatten(config.peft), type(config.peft).__name__]

    def build() -> tuple[Shape, ParameterAudit]:
        model, parameters = outline_model(spec)
        return shape_of(model), parameters

    return cached(config, "outline", key, build)
