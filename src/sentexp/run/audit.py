"""`python -m sentexp audit`: look at every row of a data set, and write down what was found."""

from dataclasses import replace
from pathlib import Path

from sentexp.config import Config, flatten
from sentexp.data.audit import DataAudit
from sentexp.run import report
from sentexp.run.inputs import RunInputs, prepare_inputs, resolve_inputs
from sentexp.run.plotting import DATA_PLOT, plot_data
from sentexp.run.recording import record_data, track_run, without_secrets
from sentexp.tracking.provenance import command, git_state
from sentexp.tracking.run_logger import RunLogger, open_run_logger


def audit(config: Config) -> DataAudit:
    """Look at every row of a data set, subsets left out, and write down what was found.

    The files are in a folder of `output_dir`; the MLflow run is in an experiment of its own, `<experiment>-audits`.

    Raises:
        UserError: anything in the configuration, the data or the store that the user can fix.
    """
    inputs = prepare_inputs(resolve_inputs(config, whole=True), near=True)
    report.print_findings(inputs.data_audit)
    name = f"audit-{config.data.title}"
    folder = Path(config.output_dir) / f"{name}-{inputs.digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    tracking = replace(config.tracking, experiment=f"{config.tracking.experiment}-audits")
    logger = open_run_logger(tracking, tracking.run_name or name)
    with track_run(logger):
        _record(logger, inputs, folder)
    report.print_audit_whereabouts(logger.run_id, tracking, folder)
    return inputs.data_audit


def _record(logger: RunLogger, inputs: RunInputs, folder: Path) -> None:
    """Record the configuration of the data, the audit and its plot, and how many rows have each fault."""
    config = without_secrets(inputs.config)
    logger.log_params(
        flatten(config.data, "data.") | {"data.name": config.data.title, "model.name": config.model.title}
    )
    logger.set_tags({"command": command(), "mlflow.source.name": "sentexp", **git_state()})
    record_data(logger, inputs, folder)
    plot_data(folder)
    logger.log_files(folder / DATA_PLOT)
    metrics = {f"{split}/rows": float(rows) for split, rows in inputs.data_audit.rows.items()}
    for finding in inputs.data_audit.findings:
        # MLflow takes no + or brackets in a name
        name = "".join(letter for letter in finding.name if letter.isalnum() or letter in " _-.")
        metrics |= {f"{split}/{name}": float(rows) for split, rows in finding.rows.items()}
    logger.log_metrics(metrics)
