"""`python -m sentexp register`: a finished run as a version of a registered model, past a gate that knows noise."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.compare.comparison import load
from sentexp.compare.leaderboard import metrics_of
from sentexp.compare.statistics import measure_configurations
from sentexp.config import AUTO, CompareConfig, RegisterConfig, from_conf
from sentexp.config.metric_names import is_better_higher
from sentexp.errors import UserError, require
from sentexp.export.mlflow_model import save_model
from sentexp.export.model_card import write_card
from sentexp.export.verify import EXACT, expected, verify_export
from sentexp.inference.run_lookup import Finished, chosen_run
from sentexp.inference.scorer import Scorer
from sentexp.system.console import say
from sentexp.tracking.next_steps import place_words, say_next, sentexp_command
from sentexp.tracking.store import Store, describe_store, open_store

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

MODEL = "model"
"""The artifact folder of a run that holds its MLflow model."""
CARRYING = "model_with_base"
GATE = "gate"
"""The tag of a version that says why it has its alias."""


@dataclass(kw_only=True, slots=True)
class Gate:
    """Whether a candidate is better than the present holder of an alias, and in what sentence."""

    passed: bool
    reason: str


def register(config: RegisterConfig) -> str:
    """Give a run's model a version, and that the alias if it is better than the present one; return the version.

    Raises:
        UserError: there is no such run, the rows do not show that it is better, or the model fails its check.
    """
    finished = chosen_run(config)
    run = finished.run
    if run is None:
        raise UserError(
            f"register takes the model of an MLflow run, and that of {finished.trained.identity} is not in "
            f"{describe_store(config.tracking)} (experiment {config.tracking.experiment}): name its store with "
            "tracking.uri=..."
        )
    assert config.name is not None
    store = open_store(config.tracking)
    champion = _holder(store, config.name, config.alias)
    if champion is not None and champion.run_id == run.info.run_id:
        say(f"{config.name}@{config.alias} is version {champion.version}, of this run, already.")
        return str(champion.version)
    gate = _judge(config, store, run, champion)
    say(gate.reason)
    require(
        gate.passed or config.force,
        f"{finished.name} does not become {config.name}@{config.alias}: give it the alias anyway with "
        "force=true, or another one with alias=...",
    )
    sentence = gate.reason if gate.passed else f"forced: {gate.reason}"
    version = _version(config, store, finished, run)
    store.client.set_model_version_tag(config.name, version, GATE, sentence[:5000])
    store.client.set_registered_model_alias(config.name, config.alias, version)
    say(f"{config.name}@{config.alias} is version {version}, of run {finished.name}")
    model = f"run=models:/{config.name}@{config.alias}"
    say_next([sentexp_command("serve", model, *place_words(config.tracking))])
    return version


def _holder(store: Store, name: str, alias: str) -> Any:
    """Return the version that has an alias; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version_by_alias(name, alias)
    except (MlflowException, UserError) as error:
        cause = error.__cause__ or error
        if getattr(cause, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _judge(config: RegisterConfig, store: Store, run: "Run", champion: Any) -> Gate:
    """Compare a run with the present champion on the same rows."""
    if champion is None:
        return Gate(passed=True, reason=f"{config.name} has no {config.alias} yet.")
    if store.get_run(champion.run_id) is None:
        return Gate(
            passed=False,
            reason=f"The run of {config.name}@{config.alias} (version {champion.version}) no longer exists, so "
            "nothing can be compared with it.",
        )
    ids = [run.info.run_id, champion.run_id]
    wanted = from_conf(
        CompareConfig,
        tracking=config.tracking,
        runs=ids,
        metric=config.metric,
        split=config.split,
        confidence=config.confidence,
    )
    try:
        comparison = load(wanted, group=False)
        metric = comparison.kind.headline if config.metric == AUTO else config.metric
        metrics_of(comparison, metric)
    except UserError as error:
        return Gate(passed=False, reason=f"It cannot be compared with {config.name}@{config.alias}: {error}")
    sides = [comparison.find("runs", one) for one in ids]
    evidence = measure_configurations(
        comparison, sides, config.resamples, config.seed, config.confidence, metrics=[metric]
    )
    gap = evidence.difference(0, 1, metric)
    worse = gap.value if is_better_higher(metric) else -gap.value
    p = float(evidence.p_values(metric)[0, 1])
    passed = bool(np.isfinite(p)) and worse > 0 and p < 1 - config.confidence
    rows = f"{len(comparison.targets):,} {comparison.split} rows"
    values = [evidence.value(number, metric) for number in range(2)]
    verdict = "which is significantly better" if passed else "which is not significantly better"
    return Gate(
        passed=passed,
        reason=f"{metric} on the same {rows}: {values[0]:.4f} against {values[1]:.4f} of {config.name}@"
        f"{config.alias} (version {champion.version}), difference {gap.value:+.4f} "
        f"[{gap.low:+.4f}, {gap.high:+.4f}], p = {p:.3g}: {verdict}.",
    )


def _version(config: RegisterConfig, store: Store, finished: Finished, run: "Run") -> str:
    """Return the version of a run's model: the one that it has, or a new one, checked before it is recorded."""
    from mlflow.exceptions import MlflowException

    assert config.name is not None
    client, folder = store.client, CARRYING if config.carry_base else MODEL
    source = f"runs:/{run.info.run_id}/{folder}"
    try:
        client.create_registered_model(config.name)
    except (MlflowException, UserError) as error:
        code = getattr(error.__cause__ or error, "error_code", "")
        if code != "RESOURCE_ALREADY_EXISTS":
            raise UserError(f"name={config.name} cannot be a registered model ({error.__cause__ or error}).") from error
    for version in client.search_model_versions(f"name='{config.name}'"):
        if version.source == source:
            return str(version.version)
    if store.artifact(run.info.run_id, f"{folder}/MLmodel") is None:
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / folder
            save_model(finished, made, config.base, config.carry_base)
            texts, wanted = expected(Scorer(finished.trained, config.base))
            verification = verify_export(wanted, ["mlflow", str(made)], texts, EXACT)
            say(f"The model is checked: {verification}")
            write_card(finished, "mlflow", verification, made)
            client.log_artifacts(run.info.run_id, str(made), folder)
    tags = {"identity": finished.trained.identity, "base": finished.trained.model.title}
    created = client.create_model_version(config.name, source, run.info.run_id, tags=tags)
    return str(created.version)
