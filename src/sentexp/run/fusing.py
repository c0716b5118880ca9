"""Which runs can train together over one backbone, and why others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass

from sentexp.config import (
    Bias,
    Config,
    HeadOnly,
    Lora,
    Quantization,
    SequenceClassification,
    Strategy,
    flatten,
    task_name,
)
from sentexp.errors import UserError

SHARED = ("model.", "trainer.precision", "trainer.accelerator", "trainer.gradient_checkpointing")
"""Keys that runs must have in common, beside task, labels and the storage of the weights."""


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
    from sentexp.models.architecture import model_type
    from sentexp.models.fast.support import ARCHITECTURES
    from sentexp.run.inputs import resolve_inputs
    from sentexp.tracking.identity import digest_of

    try:
        spec = resolve_inputs(config)
    except UserError as error:
        return str(error), ""
    architecture = model_type(spec.backbone)
    if architecture not in ARCHITECTURES:
        return f"only layers of {', '.join(ARCHITECTURES)} are fused, and this is {architecture}", ""
    if config.trainer.cuda_graphs is not True and _are_recorded(config, architecture):
        return "on a GPU each replays its own CUDA graphs (trainer.cuda_graphs=true: those of all together)", ""
    shared = {key: value for key, value in flatten(config).items() if key.startswith(SHARED)}
    peft = config.peft
    stored = [peft.quantization.name, peft.double_quant, peft.compute_dtype.name]
    return "", digest_of(shared, stored, task_name(config.task), spec.examples.labels)


def _are_recorded(config: Config, architecture: str) -> bool:
    """Tell whether a run by itself replays its steps, which takes less time than those of several runs that do not."""
    from sentexp.run.cuda_graphs import uses_cuda_graphs
    from sentexp.system.device import choose_device

    return uses_cuda_graphs(config, choose_device(config.trainer.accelerator), architecture)


def _obstacle(config: Config) -> str:
    """Return what in a configuration prevents fusing."""
    peft, trainer = config.peft, config.trainer
    if isinstance(peft, HeadOnly) and isinstance(config.task, SequenceClassification):
        return "head-only runs compute the features of each text once for all of them, and need no more"
    if not isinstance(peft, Lora):
        return "only LoRA adapters are fused"
    obstacles = {
        f"trainer={trainer.strategy.name} trains one run in several processes": trainer.strategy is not Strategy.single,
        f"peft.bias={peft.bias.name} trains the backbone's own biases": peft.bias is not Bias.none,
        "peft.modules_to_save trains modules of the backbone": bool(peft.modules_to_save),
        f"peft.init={peft.init} changes the backbone": peft.changes_base,
        "layers in int8 are bitsandbytes' own": peft.quantization is Quantization.int8,
        "task.r_drop reads every batch twice": config.task.r_drop > 0,
        "task.neftune_alpha gives every run noise of its own": config.task.neftune_alpha > 0,
        "trainer.padding_free=false pads every run by itself": not trainer.padding_free,
        "trainer.compile=true makes code for one run": trainer.compile,
    }
    return next((reason for reason, applies in obstacles.items() if applies), "")
