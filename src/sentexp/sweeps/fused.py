"""`hydra/launcher=fused`, the default of `--multirun`: runs that train adapters over one backbone read it together.

Each is a run like any other, with its own record, checkpoints and end; see `sentexp.models.together` for how they meet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher

from sentexp.config import Bias, Config, HeadOnly, Lora, Quantization, SequenceClassification, flatten, task_name
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    from sentexp.models.together import Switch
    from sentexp.sweeps.launching import Job

SHARED = ("model.", "trainer.precision", "trainer.accelerator", "trainer.gradient_checkpointing")
"""Keys that runs must have in common, beside task, labels and the storage of the weights."""


class FusedLauncher(BasicLauncher):
    """Hydra's own launcher, but for runs that can be fused.

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


@dataclass(kw_only=True, slots=True)
class Fusion:
    """What becomes of runs: groups that train together, by their numbers, and why others do not, by theirs."""

    groups: list[list[int]]
    reasons: dict[int, str]


def fuse(configs: Sequence[Config]) -> Fusion:
    """Return which runs train together."""
    reasons: dict[int, str] = {}
    by_key: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        reason, key = _kind(config)
        if reason:
            reasons[number] = reason
        else:
            by_key.setdefault(key, []).append(number)
    groups = []
    for members in by_key.values():
        if len(members) > 1:
            groups.append(members)
        else:
            reasons[members[0]] = "no other run has its backbone, task and arithmetic"
    return Fusion(groups=groups, reasons=reasons)


def _kind(config: Config) -> tuple[str, str]:
    """Return why a run cannot be fused, or a digest of what those that it is fused with must share."""
    reason = _obstacle(config)
    if reason:
        return reason, ""
    from sentexp.materials import find
    from sentexp.models.backbone import model_type
    from sentexp.models.llama import ARCHITECTURES
    from sentexp.tracking.identity import digest_of

    try:
        basis = find(config)
    except UserError as error:
        return str(error), ""
    architecture = model_type(basis.backbone)
    if architecture not in ARCHITECTURES:
        return f"only layers of {', '.join(ARCHITECTURES)} are fused, and this is {architecture}", ""
    shared = {key: value for key, value in flatten(config).items() if key.startswith(SHARED)}
    peft = config.peft
    stored = [peft.quantization.name, peft.double_quant, peft.compute_dtype.name]
    return "", digest_of(shared, stored, task_name(config.task), basis.examples.labels)


def _obstacle(config: Config) -> str:
    """Return what in a configuration stands against fusing."""
    peft, trainer = config.peft, config.trainer
    if isinstance(peft, HeadOnly) and isinstance(config.task, SequenceClassification):
        return "head-only runs compute the features of each text once for all of them, and need no more"
    if not isinstance(peft, Lora):
        return "only LoRA adapters are fused"
    obstacles = {
        f"peft.bias={peft.bias.name} trains the backbone's own biases": peft.bias is not Bias.none,
        "layers in int8 are bitsandbytes' own": peft.quantization is Quantization.int8,
        "trainer.padding_free=false pads every run by itself": not trainer.padding_free,
        "trainer.compile=true makes code for one run": trainer.compile,
    }
    return next((reason for reason, stands in obstacles.items() if stands), "")


def play(launcher: FusedLauncher, jobs: "list[Job]", work: "Callable[[Job], None]") -> None:
    """Do runs that can be fused.

    Args:
        launcher: hydra's.
        jobs: the runs.
        work: does one of them in a thread of its own, and tells how it ended.
    """
    from sentexp.console import say
    from sentexp.hardware import choose_device
    from sentexp.models.together import Conductor

    device = choose_device(jobs[0].config.trainer.accelerator)
    say(f"{len(jobs)} runs train together over one backbone (hydra/launcher=sequential: one after the other)")
    conductor = Conductor(device, launcher.max_runs, _hydra_switches())

    def begin(job: "Job") -> Callable[[], None]:
        return lambda: work(job)

    conductor.play([begin(job) for job in jobs])
    say(f"Up to {conductor.together} of them read the backbone in one pass")


def _hydra_switches() -> "tuple[Switch, ...]":
    """Return what hydra keeps of the run that it is at."""
    from hydra.core.hydra_config import HydraConfig

    from sentexp.models.together import Switch

    hydra: Any = HydraConfig.instance()

    def put(config: Any) -> None:
        hydra.cfg = config

    return (Switch(lambda: hydra.cfg, put),)
