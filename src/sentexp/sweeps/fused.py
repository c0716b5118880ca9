"""`hydra/launcher=fused`, the default of `--multirun`: runs that train adapters over one backbone read it together.

Each is a run like any other, with its own record, checkpoints and end; see `sentexp.models.fast.multi_run`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher

from sentexp.errors import require

if TYPE_CHECKING:
    from sentexp.models.fast.run_thread import GlobalState
    from sentexp.sweeps.launch import Job


class FusedLauncher(BasicLauncher):
    """Hydra's own launcher, except for runs that can be fused.

    Args:
        max_runs: the most that train at once; measured memory may allow fewer.
    """

    def __init__(self, max_runs: int = 16) -> None:
        super().__init__()
        require(
            isinstance(max_runs, int) and max_runs > 0,
            f"hydra.launcher.max_runs={max_runs} must be a whole number, at least 1.",
        )
        self.max_runs = max_runs


def run_fused(launcher: FusedLauncher, jobs: "list[Job]", work: "Callable[[Job], None]") -> None:
    """Do runs that can be fused.

    Args:
        launcher: hydra's.
        jobs: the runs.
        work: does one of them in a thread of its own, and tells how it ended.
    """
    from sentexp.models.fast.multi_run import RunScheduler
    from sentexp.system.console import say
    from sentexp.system.device import choose_device

    device = choose_device(jobs[0].config.trainer.accelerator)
    say(f"{len(jobs)} runs train together over one backbone (hydra/launcher=sequential: one after the other)")
    scheduler = RunScheduler(device, launcher.max_runs, _hydra_states())

    def begin(job: "Job") -> Callable[[], None]:
        return lambda: work(job)

    scheduler.run_all([begin(job) for job in jobs])
    say(f"Up to {scheduler.largest_pass} of them read the backbone in one pass")


def _hydra_states() -> "tuple[GlobalState, ...]":
    """Return what hydra keeps of the run that it is at."""
    from hydra.core.hydra_config import HydraConfig

    from sentexp.models.fast.run_thread import GlobalState

    hydra: Any = HydraConfig.instance()

    def restore(config: Any) -> None:
        hydra.cfg = config

    return (GlobalState(lambda: hydra.cfg, restore),)
