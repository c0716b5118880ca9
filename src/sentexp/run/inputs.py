"""What a run is made of, before any training second: backbone, tokenizer, examples, prompt; device, tokens, audit."""

from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sentexp.config import (
    AnswerLoss,
    CausalLM,
    Config,
    Precision,
    TableData,
    Untuned,
    flatten,
    target_kind,
    task_name,
)
from sentexp.data.audit import DataAudit, audit
from sentexp.data.packing import Packer
from sentexp.data.prompts import Prompt, build_prompt, choose_shots, holding_special_tokens
from sentexp.data.splits import NAMES, Examples, load_examples
from sentexp.data.tokens import TokenRows, tokenize
from sentexp.errors import require
from sentexp.models.architecture import max_positions, model_type, require_own_tokenizer, require_supported
from sentexp.models.checkpoint_labels import head_rows
from sentexp.models.fast.padding_free import packer_for
from sentexp.models.fast.support import ARCHITECTURES
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import Backbone, locate_backbone
from sentexp.models.quantized import require_installed
from sentexp.models.virtual_tokens import count_virtual_tokens
from sentexp.run import report
from sentexp.run.cache import cached
from sentexp.run.cuda_graphs import uses_cuda_graphs
from sentexp.run.resolve import resolve_task
from sentexp.system.console import hint, waiting
from sentexp.system.device import choose_device, choose_precision
from sentexp.system.hub import is_local
from sentexp.system.memory import reset_peak_memory
from sentexp.system.stopwatch import TIMES
from sentexp.tracking.identity import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class RunSpec:
    """What the identity of a run depends on. `prompt` frames the texts; `positions` is the model's limit.

    `head_rows` are those of the head that the backbone has already, one for each label; None where the head is new.
    """

    config: Config
    backbone: Backbone
    tokenizer: "PreTrainedTokenizerBase"
    examples: Examples
    digest: str
    positions: int
    prompt: Prompt
    head_rows: list[int] | None


@dataclass(kw_only=True, slots=True)
class RunInputs(RunSpec):
    """What every attempt at a run shares; `cuda_graphs` says whether steps are recorded."""

    device: torch.device
    precision: Precision
    cuda_graphs: bool
    tokens: dict[str, TokenRows]
    data_audit: DataAudit


def resolve_inputs(config: Config, whole: bool = False) -> RunSpec:
    """Find backbone and data, and build the prompt.

    Args:
        config: of the run; the task in what is returned is resolved, as far as the model decides it.
        whole: leave the subsets of the data out.

    Raises:
        UserError: anything in the configuration or the data that the user can fix.
    """
    examples, digest = cached(
        config,
        "examples",
        [flatten(config.data), whole, target_kind(config.task)],
        lambda: _examples(config, whole),
    )
    backbone, tokenizer, positions = cached(
        config, "backbone", [flatten(config.model), task_name(config.task)], lambda: _backbone(config)
    )
    virtual = count_virtual_tokens(config.peft)
    positions -= virtual
    besides = f" that virtual tokens leave (peft.num_virtual_tokens={virtual})" if virtual else ""
    require(
        config.data.max_length <= positions,
        f"data.max_length={config.data.max_length} is more than the {positions} positions of "
        f"{config.model.given_as}{besides}: give data.max_length={max(positions, 1)}, or less.",
    )
    rows = None
    if not isinstance(config.task, CausalLM):
        rows = head_rows(config.model, backbone, examples.labels, config.data.name)
    config = replace(config, task=resolve_task(config, backbone, tokenizer, rows is not None))
    spec = RunSpec(
        config=config,
        backbone=backbone,
        tokenizer=tokenizer,
        examples=examples,
        digest=digest,
        positions=positions,
        prompt=build_prompt(config.task, tokenizer, examples.labels, pairs=_pair_of(config) is not None),
        head_rows=rows,
    )
    return replace(spec, prompt=prompt_with_shots(spec)) if isinstance(config.peft, Untuned) else spec


def run_identity(spec: RunSpec) -> str:
    """Return the identity of a run."""
    return fingerprint(spec.config, spec.digest, spec.backbone.revision, spec.prompt.to_dict())


def choose_arithmetic(spec: RunSpec) -> tuple[torch.device, Precision, bool]:
    """Return where and in which precision a run computes, and whether its steps are recorded as CUDA graphs.

    Raises:
        UserError: a device, a precision, CUDA graphs or compiled layers that cannot be had here.
    """
    trainer, architecture = spec.config.trainer, model_type(spec.backbone)
    require(
        not trainer.compile or architecture in ARCHITECTURES,
        f"trainer.compile=true compiles layers of {', '.join(ARCHITECTURES)}, and "
        f"{spec.config.model.given_as} is a {architecture}: leave it false.",
    )
    device = choose_device(trainer.accelerator)
    precision = choose_precision(trainer.precision, device)
    return device, precision, uses_cuda_graphs(spec.config, device, architecture)


def prepare_inputs(spec: RunSpec, near: bool = False, show: bool = True) -> RunInputs:
    """Choose device and precision, tokenise, and audit.

    Args:
        spec: of the run.
        near: look for near-duplicates as well.
        show: print what was found.

    Raises:
        UserError: a device, a precision, a package or CUDA graphs that cannot be had here.
    """
    config = spec.config
    require_installed(config.peft.quantization)
    device, precision, cuda_graphs = choose_arithmetic(spec)
    reset_peak_memory(device)
    tokens = tokenize_splits(spec)
    data_audit = cached(
        config,
        "audit",
        [flatten(config.data), _token_key(spec), near],
        lambda: _audit(spec, tokens, near),
    )
    if show:
        report.print_data(data_audit)
    resolved = {item.name: getattr(spec, item.name) for item in fields(RunSpec)}
    return RunInputs(
        **resolved, device=device, precision=precision, cuda_graphs=cuda_graphs, tokens=tokens, data_audit=data_audit
    )


def with_shots(inputs: RunInputs) -> RunInputs:
    """Return the inputs of the untuned base: `task.shots` examples from train are in its prompt."""
    prompt = prompt_with_shots(inputs)
    if prompt is inputs.prompt or isinstance(inputs.config.peft, Untuned):
        return inputs
    base = replace(inputs, prompt=prompt)
    return replace(base, tokens=tokenize_splits(base))


def prompt_with_shots(spec: RunSpec) -> Prompt:
    """Return the prompt of the untuned base, with `task.shots` training texts that can be shown whole."""
    task, examples = spec.config.task, spec.examples
    if not isinstance(task, CausalLM) or task.shots == 0:
        return spec.prompt
    fits = ~tokenize_splits(spec)["train"].cut
    fits[holding_special_tokens(examples.train.column("text").to_pylist(), spec.tokenizer)] = False
    shots, pairs = choose_shots(examples, task, fits), _pair_of(spec.config) is not None
    return build_prompt(task, spec.tokenizer, examples.labels, shots, pairs)


def tokenize_splits(spec: RunSpec) -> dict[str, TokenRows]:
    """Return the tokens of every split in the frame of the prompt."""
    config = spec.config
    length, progress = config.data.max_length, config.trainer.progress_bar

    def rows(split: str) -> TokenRows:
        return tokenize(spec.examples.split(split), spec.tokenizer, spec.prompt, length, spec.positions, progress)

    with TIMES.part("tokens"):
        return cached(config, "tokens", _token_key(spec), lambda: {split: rows(split) for split in NAMES})


def scoring_facts(inputs: RunInputs) -> dict[str, Any]:
    """Return what of a run's inputs is needed to score other texts as in the run, as JSON values.

    The base model is named by its place and its revision, so that another one is noticed.
    """
    config = inputs.config
    model = asdict(config.model, dict_factory=_json_values) | {"name": config.model.title}
    if config.model.path is not None and is_local(config.model.path):
        model["path"] = str(Path(config.model.path).expanduser().absolute())
    stored = flatten(config.peft)
    return {
        "kind": task_name(config.task),
        "task": flatten(config.task),
        "labels": inputs.examples.labels,
        **({"scale": scale} if (scale := inputs.examples.scale()) is not None else {}),
        "prompt": inputs.prompt.to_dict(),
        "max_length": config.data.max_length,
        "positions": inputs.positions,
        "strip": config.data.strip,
        "text": str(config.data.text_template) if isinstance(config.data, TableData) else None,
        **({"text_pair": pair} if (pair := _pair_of(config)) is not None else {}),
        "model": model,
        "revision": inputs.backbone.revision,
        "storage": {key: stored[key] for key in ("quantization", "double_quant", "compute_dtype")},
        "precision": inputs.precision.name,
    }


def _audit(spec: RunSpec, tokens: dict[str, TokenRows], near: bool) -> DataAudit:
    with TIMES.part("audit"), waiting("Looking at the data"):
        return audit(spec.config.data.title, spec.examples, tokens, near)


def _pair_of(config: Config) -> str | None:
    """Return the column or template of the second texts, where rows are pairs."""
    template = config.data.pair_template if isinstance(config.data, TableData) else None
    return None if template is None else str(template)


def _json_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.name if isinstance(value, Enum) else value for key, value in pairs}


def build_packer(spec: RunSpec) -> Packer | None:
    """Return what lays rows out without padding; None where they are padded.

    That is where `trainer.padding_free` says so, with virtual tokens, and for architectures that were never compared
    without padding.
    """
    config, prompt = spec.config, spec.prompt
    if not config.trainer.padding_free or count_virtual_tokens(config.peft):
        return None
    loss = config.task.loss if isinstance(config.task, CausalLM) else AnswerLoss.answer
    packer = packer_for(model_type(spec.backbone), prompt, loss)
    if packer is not None and config.task.neftune_alpha:
        packer.trains_on_prefix = False  # each row has noise of its own
    return packer


@TIMES.part("data")
def _examples(config: Config, whole: bool) -> tuple[Examples, str]:
    hint(f"Reading the data, {config.data.title}")
    examples = load_examples(config.data, whole, kind=target_kind(config.task))
    return examples, examples.digest()


@TIMES.part("model files and tokenizer")
def _backbone(config: Config) -> tuple[Backbone, "PreTrainedTokenizerBase", int]:
    hint(f"Reading the model, {config.model.title}")
    backbone = locate_backbone(config.model)
    require_supported(backbone, config.model.given_as, isinstance(config.task, CausalLM))
    tokenizer = load_tokenizer(backbone)
    require_own_tokenizer(backbone, tokenizer)
    return backbone, tokenizer, max_positions(backbone)


def _token_key(spec: RunSpec) -> list[Any]:
    return [spec.digest, spec.backbone.revision, spec.prompt.to_dict(), spec.config.data.max_length, spec.positions]
