"""One run, from its configuration to its result: the protocol of the experiment, top to bottom."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)

from sentexp import __version__
from sentexp.config import CausalLM, Config, Strategy, TrackingBackend, Untuned, method_name
from sentexp.config.metric_names import METRICS, SLICE_METRICS
from sentexp.data.audit import DataAudit
from sentexp.distributed import processes
from sentexp.errors import OutOfMemory, UserError, require
from sentexp.metrics.split_metrics import confusion_matrix, slice_scores, split_metrics
from sentexp.models.adapters import ParameterAudit
from sentexp.models.saving import save_trained, saved_mib
from sentexp.run import report
from sentexp.run.baselines import Baseline, measure_baselines, untuned_identity
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.inputs import Basis, Materials, find, gather, identify, scoring_facts
from sentexp.run.recording import (
    AUDIT,
    PLOTS,
    Sinks,
    count_answers,
    keep_predictions,
    left_in_a_sweep,
    open_run,
    plot_run,
    record_audit,
    record_provenance,
    recorded,
)
from sentexp.system.console import OUT, say
from sentexp.system.hardware import choose_device, peak_memory_gib, release_memory
from sentexp.tracking.predictions import FOLDER as PREDICTIONS
from sentexp.tracking.run_dir import METRICS_FILE, STATE, RunFolder
from sentexp.tracking.store import Record, describe_store, find_run, open_record, open_store, read_artifact
from sentexp.training.calibration import fit_temperature, reliability
from sentexp.training.checkpoint import Checkpoints, remove_checkpoints
from sentexp.training.module import Evaluation
from sentexp.training.pruning import Judge, Pruning
from sentexp.training.trainer import build_trainer, evaluate, fit, halve_micro_batch

RESULT = "result.json"


@dataclass(kw_only=True, slots=True)
class Result:
    """What a finished run leaves: where it is, and its metrics by name (`best/...`, `test/...`, costs).

    `result.json` holds all of it, the run's folder apart; `weights` is the name of a folder in that folder. `shots` are
    the examples that the untuned base was shown.
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

    def save(self) -> None:
        """Write `result.json`; it is whole or absent."""
        facts = {key: value for key, value in asdict(self).items() if key != "folder"}
        unfinished = self.folder / f"{RESULT}.partial"
        unfinished.write_text(json.dumps(facts | {"weights": self.weights.name}, indent=2) + "\n")
        unfinished.replace(self.folder / RESULT)

    @classmethod
    def load(cls, text: str, folder: Path) -> "Result":
        """Return the result that `result.json` of a run in this folder holds."""
        facts = json.loads(text)
        facts["weights"] = folder / facts["weights"]
        facts["parameters"] = ParameterAudit(**facts["parameters"])
        facts["baselines"] = {name: Baseline(**baseline) for name, baseline in facts["baselines"].items()}
        return cls(folder=folder, **facts)


def run(config: Config, judge: Judge | None = None) -> Result:
    """Train, test and record one configuration; in several processes, if `trainer.strategy` says so, together.

    A run that was killed or pruned goes on from its last checkpoint; one that is finished is not trained again, unless
    `sweep.rerun` says so: its result is returned.

    Args:
        config: of the run.
        judge: may stop the training after an evaluation.

    Raises:
        Pruned: the judge has stopped it.
        UserError: anything in the configuration, the data or the store that the user can mend.
        ProcessFailed: another process of the run has failed.
    """
    started = time.monotonic()
    strategy = config.trainer.strategy
    processes.require_launched(strategy)
    if strategy is not Strategy.single and processes.launch().rank > 0:
        config = replace(config, trainer=replace(config.trainer, progress_bar=False))
        OUT.quiet = True
    config = with_defaults(config)
    with left_in_a_sweep(config):
        basis = find(config)  # before they join: transformers then writes a converted model in the first process only
    with processes.joined(strategy, choose_device(config.trainer.accelerator)):
        return _run(config, basis, started, judge)


def _run(config: Config, basis: Basis, started: float, judge: Judge | None) -> Result:
    identity = identify(basis)
    _require_alike((identity, __version__))
    _require_rows(config)
    with RunFolder(Path(config.output_dir) / identity, wait=config.sweep.name is not None) as folder:
        kept = processes.led(lambda: find_result(config, identity))
        if kept is not None and folder.state.get("run_id") == kept.run_id:  # killed when all was done
            folder.forget()
            remove_checkpoints(folder.path)
        if kept is not None and not config.sweep.rerun:
            say(f"Run {identity} is finished: this is its result. sweep.rerun=true trains it again.")
            if lacks_baselines(kept, config):
                kept = _with_baselines(kept, gather(basis))
            processes.led(lambda: plot_finished(kept, config))
            _show(kept, config)
            return kept
        with left_in_a_sweep(config):
            materials = gather(basis)
        record = open_run(materials.config, identity, folder)
        with recorded(record):
            processes.led(lambda: record_provenance(record, materials, folder.path))
            if isinstance(config.task, CausalLM) and isinstance(config.peft, Untuned):
                record.set_tags({"baseline.identity": untuned_identity(materials)})
            result = _attempt_until_it_fits(materials, record, folder, identity, judge)
            result = processes.led(lambda: _conclude(result, config, record, folder, time.monotonic() - started))
        folder.forget()
        remove_checkpoints(folder.path)
    _show(result, config)
    release_memory()  # the adapter is in reference cycles: the next run of a sweep must find it gone (law 8)
    return result


def _require_rows(config: Config) -> None:
    rows, count = config.trainer.batch_size, processes.count()
    require(
        rows >= count,
        f"trainer.batch_size={rows} are the rows of all {count} processes together: use {count} or more (and less of "
        "trainer.accumulate_grad_batches for the same effective batch), or fewer processes.",
    )


def _require_alike(identity: tuple[str, str]) -> None:
    """Refuse processes that have found other data, another model or other code than the leading one."""
    found = processes.exchange(identity)
    others = [str(rank) for rank, other in enumerate(found) if other != found[0]]
    require(
        not others,
        f"Process {', '.join(others)} has found other data, another model or another version of sentexp than process "
        "0: all machines of a run need the same files.",
    )


def with_defaults(config: Config) -> Config:
    """Return the configuration with what depends on the rest of it.

    Baselines are for sweeps and for `causal_lm`, pictures for single runs.
    """
    in_sweep = config.sweep.name is not None
    baseline = in_sweep or isinstance(config.task, CausalLM) if config.baseline is None else config.baseline
    return replace(config, baseline=baseline, plots=not in_sweep if config.plots is None else config.plots)


def find_result(config: Config, identity: str) -> Result | None:
    """Return the result of a run that is finished; None where there is none.

    Raises:
        UserError: the store cannot be used.
    """
    folder = Path(config.output_dir) / identity
    file = folder / RESULT
    text = file.read_text() if file.is_file() else None
    if config.tracking.backend is not TrackingBackend.none:
        found = find_run(config.tracking, "identity", identity, "FINISHED")
        if found is None:
            return None
        if text is None or json.loads(text)["run_id"] != found.info.run_id:
            text = read_artifact(open_store(config.tracking), found.info.run_id, RESULT)
    elif (folder / STATE).is_file():
        return None
    return None if text is None else Result.load(text, folder)


def lacks_baselines(result: Result, config: Config) -> bool:
    """Tell whether a finished run was not compared with the baselines that the configuration asks for."""
    return bool(config.baseline) and (not result.baselines or result.shots != _shots(config))


def plot_finished(result: Result, config: Config) -> None:
    """Draw a finished run that has no pictures, if they are wanted and its folder still holds what they show."""
    folder = result.folder
    there = {name for name in (RESULT, AUDIT, METRICS_FILE, STATE, *PLOTS) if (folder / name).is_file()}
    is_whole = {RESULT, AUDIT, METRICS_FILE} <= there and STATE not in there  # else another attempt is under way
    if not config.plots or there.issuperset(PLOTS) or not is_whole:
        return
    if json.loads((folder / RESULT).read_text())["run_id"] != result.run_id or not _plot(result):
        return
    if result.run_id is not None:
        store = open_store(config.tracking)
        for name in PLOTS:
            store.client.log_artifact(result.run_id, str(folder / name))


def prepare(config: Config) -> None:
    """Fetch, convert and tokenise what a run of this configuration needs, so that it can start without a network.

    Raises:
        UserError: anything in the configuration or the data that the user can mend.
    """
    materials = gather(find(config))
    say(f"The backbone is in {materials.backbone.folder}; a run of this configuration needs no network.")


def audit(config: Config) -> DataAudit:
    """Look at every row of a data set, subsets left out, and write down what was found.

    The files are in a folder of `output_dir`; the MLflow run is in an experiment of its own, `<experiment>-audits`.

    Raises:
        UserError: anything in the configuration, the data or the store that the user can mend.
    """
    materials = gather(find(config, whole=True), near=True)
    report.print_findings(materials.data_audit)
    name = f"audit-{config.data.name}"
    folder = Path(config.output_dir) / f"{name}-{materials.digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    tracking = replace(config.tracking, experiment=f"{config.tracking.experiment}-audits", system_metrics=False)
    record = open_record(tracking, name, None)
    with recorded(record):
        record_audit(record, materials, folder)
    report.print_audit_whereabouts(record.run_id, record.where, folder)
    return materials.data_audit


def _attempt_until_it_fits(
    materials: Materials, record: Record, folder: RunFolder, identity: str, judge: Judge | None
) -> Result:
    """Run, at half the micro-batch and double the accumulation whenever memory runs out (law 9)."""
    fits: dict[str, Any] = folder.state.get("fits", {})
    trainer = replace(materials.config.trainer, **fits)
    longest = int(materials.tokens["train"].lengths.max())
    least = processes.count() if trainer.max_tokens is None else 2 * longest
    while True:
        try:
            config = replace(materials.config, trainer=trainer)
            return _attempt(replace(materials, config=config), record, folder, identity, judge)
        except OutOfMemory as error:
            smaller = halve_micro_batch(trainer, least)
            if smaller is None:
                raise UserError(
                    f"Out of memory at trainer.{trainer.fills_by}={trainer.micro_batch}, which cannot be halved "
                    f"({error}): use a smaller model, peft=qlora, a shorter data.max_length, or "
                    "trainer.gradient_checkpointing=true."
                ) from None
            trainer = smaller
        release_memory()
        changed = (trainer.fills_by, "accumulate_grad_batches", "eval_batch_size")
        folder.remember(fits={name: getattr(trainer, name) for name in changed})
        remove_checkpoints(folder.path)
        unit = "rows" if trainer.max_tokens is None else "tokens"
        note = f"batches of {trainer.micro_batch} {unit}, accumulated {trainer.accumulate_grad_batches} times"
        say(f"Out of memory: starting again with {note}; the effective batch is the same.")
        record.set_tags({"out_of_memory": note})


def _attempt(materials: Materials, record: Record, folder: RunFolder, identity: str, judge: Judge | None) -> Result:
    """Build the model, measure what it is compared with, train it, and test its best checkpoint."""
    config, labels = materials.config, materials.examples.labels
    L.seed_everything(config.seed, verbose=False)
    model, parameters = build_model(materials)
    report.print_parameters(method_name(config.peft), parameters)
    baselines = measure_baselines(materials, model) if config.baseline else {}
    data, module = build_data(materials), build_module(materials, model)
    checkpoints = Checkpoints(folder.path, config.trainer.monitor, config.trainer.save_steps)
    sinks = Sinks(record, folder)
    pruning = [] if judge is None else [Pruning(judge, config.trainer.monitor, folder.path)]
    trainer = build_trainer(config.trainer, materials.precision, materials.device, sinks, checkpoints, *pruning)

    began = time.monotonic()
    if isinstance(config.peft, Untuned):
        evaluate(trainer, module, data, "validation")
    else:
        fit(trainer, module, data, checkpoints)
    train_seconds = checkpoints.seconds + time.monotonic() - began
    metrics = evaluate(trainer, module, data, "test")
    temperature = processes.led(lambda: fit_temperature(*module.validation))
    answers, derived = processes.led(lambda: _derive(materials, module.test, temperature))
    keep_predictions(materials, module.validation[0], module.test, folder.path)
    derived |= _differences(metrics, baselines)
    record.set_tags(answers)
    record.log_metrics(derived, trainer.global_step)
    metrics |= derived

    base = config.model.path or str(materials.backbone.folder)
    prior = None if module.prior is None else module.prior.tolist()
    facts = {"identity": identity, "run_id": record.run_id, "prior": prior, "temperature": temperature}
    facts |= scoring_facts(materials)
    weights = save_trained(model, materials.tokenizer, config.peft, base, facts, folder.path)
    metrics |= processes.led(lambda: _best(folder, checkpoints.best_step)) | {
        "seconds": checkpoints.seconds,
        "train/seconds": train_seconds,
        "train/steps": trainer.global_step,
        "parameters/trainable": parameters.trainable_total,
        "parameters/total": parameters.total,
        "saved_mib": saved_mib(weights),
        "peak_memory_gib": max(processes.exchange(peak_memory_gib(materials.device))),
    }
    return Result(
        run_id=record.run_id,
        identity=identity,
        folder=folder.path,
        weights=weights,
        metrics=metrics,
        labels=labels,
        confusion=confusion_matrix(labels, module.test.logits, module.test.targets),
        parameters=parameters,
        objective=metrics[config.trainer.monitor.replace("validation/", "best/")],
        baselines=baselines,
        shots=_shots(config),
        answers=answers,
        reliability={
            "as it is": reliability(module.test.logits, module.test.targets),
            f"at temperature {temperature:.2f}": reliability(module.test.logits / temperature, module.test.targets),
        },
    )


def _derive(materials: Materials, test: Evaluation, temperature: float) -> tuple[dict[str, str], dict[str, float]]:
    """Return what a language model answered, as tags, and the metrics after calibration and of slices."""
    answers = count_answers(materials, test)
    cooled = split_metrics(materials.examples.labels, test.logits / temperature, test.targets)
    derived = answers.metrics | {f"test/{name}_calibrated": cooled[name] for name in ("loss", "ece", "brier")}
    return answers.tags, derived | {"temperature": temperature} | slice_scores(materials.examples, test.logits)


def _with_baselines(result: Result, materials: Materials) -> Result:
    """Compare a finished run with its baselines, which it was not when it was trained."""
    baselines = measure_baselines(materials, build_model(materials)[0])
    differences = _differences(result.metrics, baselines)
    own = {key: value for key, value in result.metrics.items() if not key.startswith(("baseline/", "difference/"))}
    result = replace(result, baselines=baselines, shots=_shots(materials.config), metrics=own | differences)
    processes.led(result.save)
    record = open_record(replace(materials.config.tracking, system_metrics=False), "", result.run_id)
    with recorded(record):
        record.log_metrics(differences, int(own["train/steps"]))
        record.log_files(result.folder / RESULT)
    return result


def _plot(result: Result) -> bool:
    """Draw a run, and return whether that went well: no fault there fails a run whose result is whole."""
    try:
        plot_run(RunFolder(result.folder), result.labels, result.confusion, result.reliability)
    except Exception as error:
        say(f"The pictures failed ({type(error).__name__}: {error}); plots=true draws them another time.")
        return False
    return True


def _shots(config: Config) -> int:
    return config.task.shots if isinstance(config.task, CausalLM) else 0


def _differences(metrics: Mapping[str, float], baselines: Mapping[str, Baseline]) -> dict[str, float]:
    """Return by how much the run's test metrics are above those of each baseline, and these themselves."""
    values = {}
    for name, baseline in baselines.items():
        for metric in SLICE_METRICS:
            theirs = baseline.metrics.get(f"test/{metric}", math.nan)
            values[f"baseline/{name}/{metric}"] = theirs
            values[f"difference/{name}/{metric}"] = metrics[f"test/{metric}"] - theirs
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _conclude(result: Result, config: Config, record: Record, folder: RunFolder, seconds: float) -> Result:
    """Write the result down, and return it with the time that the run took.

    Args:
        result: of the run; its `seconds` are those of the training before this process went on with it.
        config: of the run.
        record: of the run.
        folder: of the run.
        seconds: that this process took.
    """
    result.metrics["seconds"] += seconds
    result.save()
    logged = ("test/", "baseline/", "difference/", "temperature")
    costs = {k: v for k, v in result.metrics.items() if not k.startswith(logged)}
    record.log_metrics(costs, int(result.metrics["train/steps"]))
    record.log_files(folder.path / RESULT)
    for part in (result.weights, folder.path / PREDICTIONS):
        record.log_files(part, part.name)
    for name in PLOTS if config.plots and _plot(result) else ():
        record.log_files(folder.path / name)
    return result


def _show(result: Result, config: Config) -> None:
    """Print the result, and where it is."""
    report.print_result(result.metrics, result.labels, result.confusion)
    report.print_answers(result.answers)
    report.print_comparison(result.metrics, {found.title: found.metrics for found in result.baselines.values()})
    report.print_costs(result.metrics)
    report.print_whereabouts(result.run_id, describe_store(config.tracking), result.folder, result.weights, config.task)


def _best(folder: RunFolder, step: int) -> dict[str, float]:
    """Return the validation metrics at the best checkpoint, and its step."""
    names = (*METRICS, "off_label_mass", "irregular_outputs")
    values = {f"best/{name}": dict(folder.history(f"validation/{name}")) for name in names}
    return {name: points[step] for name, points in values.items() if step in points} | {"best/step": step}
