"""A run that is finished already: its result is returned instead of training it again."""

from dataclasses import replace

from sentexp.errors import require
from sentexp.run import report
from sentexp.run.baselines import measure_baselines
from sentexp.run.build import build_model
from sentexp.run.inputs import RunInputs, RunSpec, prepare_inputs
from sentexp.run.plotting import plot_finished
from sentexp.run.recording import record_new_baselines
from sentexp.run.result import Result, find_result, lacks_baselines, shots_of
from sentexp.run.summary import differences
from sentexp.system.console import say
from sentexp.tracking.run_dir import RunDir
from sentexp.training.checkpoint import remove_checkpoints


def finished_result(spec: RunSpec, run_dir: RunDir) -> Result | None:
    """Return and show the result of a run that is finished, with the baselines and plots that are wanted now.

    None where there is none, or where `sweep.rerun` asks for a new one.
    """
    config, identity = spec.config, run_dir.path.name
    result = find_result(config, identity)
    if result is not None and run_dir.state.get("run_id") == result.run_id:  # killed when all was done
        run_dir.clear_state()
        remove_checkpoints(run_dir.path)
    if result is None or config.sweep.rerun:
        return None
    require(
        result.labels == spec.examples.labels,
        f"Run {identity} is finished with the labels {', '.join(result.labels)}, and these rows, which are the same "
        f"otherwise, have {', '.join(spec.examples.labels)}: name them with data.labels, or give sweep.rerun=true.",
    )
    say(f"Run {identity} is finished: this is its result. sweep.rerun=true trains it again.")
    if lacks_baselines(result, config):
        result = _with_baselines(result, prepare_inputs(spec))
    plot_finished(result, config)
    report.print_run(result, config)
    return result


def _with_baselines(result: Result, inputs: RunInputs) -> Result:
    """Compare a finished run with its baselines, which it was not when it was trained."""
    baselines = measure_baselines(inputs, build_model(inputs)[0])
    compared = differences(result.metrics, baselines, result.kind)
    kept = {name: value for name, value in result.metrics.items() if not name.startswith(("baseline/", "difference/"))}
    result = replace(result, baselines=baselines, shots=shots_of(inputs.config), metrics=kept | compared)
    record_new_baselines(result, compared, inputs.config)
    return result
