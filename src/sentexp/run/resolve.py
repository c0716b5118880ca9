"""The configuration of a run with all that depends on the rest of it, resolved once before anything else."""

from dataclasses import replace

from sentexp.config import CausalLM, Config, Strategy
from sentexp.distributed.launch import current_launch


def resolve_config(config: Config) -> Config:
    """Return the configuration without keys that are left open.

    Baselines are for sweeps and for `causal_lm`, plots for single runs; of several processes the first shows progress.
    """
    in_sweep = config.sweep.name is not None
    baseline = in_sweep or isinstance(config.task, CausalLM) if config.baseline is None else config.baseline
    plots = not in_sweep if config.plots is None else config.plots
    trainer = replace(config.trainer, progress_bar=config.trainer.progress_bar and not is_follower(config))
    return replace(config, baseline=baseline, plots=plots, trainer=trainer)


def is_follower(config: Config) -> bool:
    """Tell whether another process of the run is its main process."""
    return config.trainer.strategy is not Strategy.single and current_launch().rank > 0
