"""What a run is made of, before any training second: backbone, tokenizer, examples, prompt; device, tokens, audit."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from sentexp.config import CausalLM, Config, Precision, Untuned, flatten, task_name
from sentexp.data.audit import DataAudit, audit
from sentexp.data.packing import Packer
from sentexp.data.prompts import Prompt, build_prompt, choose_shots, holding_special_tokens, resolve_template
from sentexp.data.splits import NAMES, Examples, load_examples
from sentexp.data.tokens import TokenRows, tokenize
from sentexp.errors import require
from sentexp.models.backbone import Backbone, load_tokenizer, locate_backbone, max_positions, model_type
from sentexp.models.fast.padding_free import FAMILIES
from sentexp.run import report
from sentexp.system.hardware import choose_device, choose_precision, reset_peak_memory
from sentexp.system.hub import is_local
from sentexp.tracking.identity import digest_of, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
KEPT = 4
"""Data sets, token sets and tokenizers that a process keeps for the next run of a sweep."""


@dataclass(kw_only=True, slots=True)
class Basis:
    """What the identity of a run stands on. `prompt` frames the texts; `positions` is the model's limit."""

    config: Config
    backbone: Backbone
    tokenizer: "PreTrainedTokenizerBase"
    examples: Examples
    digest: str
    positions: int
    prompt: Prompt


@dataclass(kw_only=True, slots=True)
class Materials(Basis):
    """What every attempt at a run shares."""

    device: torch.device
    precision: Precision
    tokens: dict[str, TokenRows]
    data_audit: DataAudit


def find(config: Config, whole: bool = False) -> Basis:
    """Find backbone and data, and build the prompt.

    Args:
        config: of the run; in what is returned, a prompt template that was chosen by name stands as it is.
        whole: leave the subsets of the data out.

    Raises:
        UserError: anything in the configuration or the data that the user can mend.
    """
    examples, digest = shared(
        config, "examples", [flatten(config.data), whole], lambda: _with_digest(load_examples(config.data, whole))
    )
    backbone, tokenizer, positions = shared(config, "backbone", flatten(config.model), lambda: _backbone(config))
    require(
        config.data.max_length <= positions,
        f"data.max_length={config.data.max_length} is more than the {positions} positions of "
        f"model={config.model.name}.",
    )
    if isinstance(config.task, CausalLM):
        config = replace(config, task=replace(config.task, template=resolve_template(config.task, tokenizer)))
    basis = Basis(
        config=config,
        backbone=backbone,
        tokenizer=tokenizer,
        examples=examples,
        digest=digest,
        positions=positions,
        prompt=build_prompt(config.task, tokenizer, examples.labels),
    )
    return replace(basis, prompt=prompt_with_shots(basis)) if isinstance(config.peft, Untuned) else basis


def identify(basis: Basis) -> str:
    """Return the identity of a run."""
    return fingerprint(basis.config, basis.digest, basis.backbone.revision, asdict(basis.prompt))


def gather(basis: Basis, near: bool = False, show: bool = True) -> Materials:
    """Choose device and precision, tokenise, and audit.

    Args:
        basis: of the run.
        near: look for near-duplicates as well.
        show: print what was found.

    Raises:
        UserError: a device or a precision that this machine has not.
    """
    config = basis.config
    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    reset_peak_memory(device)
    tokens = tokenize_splits(basis)
    found = shared(
        config,
        "audit",
        [flatten(config.data), _token_key(basis), near],
        lambda: audit(config.data.name, basis.examples, tokens, near),
    )
    if show:
        report.print_data(found)
    own = {item.name: getattr(basis, item.name) for item in fields(Basis)}
    return Materials(**own, device=device, precision=precision, tokens=tokens, data_audit=found)


def with_shots(materials: Materials) -> Materials:
    """Return the materials of the untuned base: `task.shots` examples from train stand in its prompt."""
    prompt = prompt_with_shots(materials)
    if prompt is materials.prompt or isinstance(materials.config.peft, Untuned):
        return materials
    base = replace(materials, prompt=prompt)
    return replace(base, tokens=tokenize_splits(base))


def prompt_with_shots(basis: Basis) -> Prompt:
    """Return the prompt of the untuned base, with `task.shots` training texts that can be shown whole."""
    task, examples = basis.config.task, basis.examples
    if not isinstance(task, CausalLM) or task.shots == 0:
        return basis.prompt
    fits = ~tokenize_splits(basis)["train"].cut
    fits[holding_special_tokens(examples.train.column("text").to_pylist(), basis.tokenizer)] = False
    return build_prompt(task, basis.tokenizer, examples.labels, choose_shots(examples, task, fits))


def tokenize_splits(basis: Basis) -> dict[str, TokenRows]:
    """Return the tokens of every split in the frame of the prompt."""
    config = basis.config
    length, progress = config.data.max_length, config.trainer.progress_bar

    def rows(split: str) -> TokenRows:
        return tokenize(basis.examples.split(split), basis.tokenizer, basis.prompt, length, basis.positions, progress)

    return shared(config, "tokens", _token_key(basis), lambda: {split: rows(split) for split in NAMES})


def scoring_facts(materials: Materials) -> dict[str, Any]:
    """Return what of a run's materials is needed to score other texts as in the run, as JSON values.

    The base model is told by where it is from and by its revision, so that another one is noticed.
    """
    config = materials.config
    model = asdict(config.model, dict_factory=_json_values)
    if config.model.path is not None and is_local(config.model.path):
        model["path"] = str(Path(config.model.path).expanduser().absolute())
    stored = flatten(config.peft)
    return {
        "kind": task_name(config.task),
        "task": flatten(config.task),
        "labels": materials.examples.labels,
        "prompt": asdict(materials.prompt),
        "max_length": config.data.max_length,
        "positions": materials.positions,
        "strip": config.data.strip,
        "text": getattr(config.data, "text", None),
        "model": model,
        "revision": materials.backbone.revision,
        "storage": {key: stored[key] for key in ("quantization", "double_quant", "compute_dtype")},
        "precision": materials.precision.name,
    }


def _json_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.name if isinstance(value, Enum) else value for key, value in pairs}


def build_packer(basis: Basis) -> Packer | None:
    """Return what lays rows out without padding; None where they are padded.

    That is where `trainer.padding_free` says so, and for architectures that were never compared without padding.
    """
    config, prompt = basis.config, basis.prompt
    if not config.trainer.padding_free or model_type(basis.backbone) not in FAMILIES:
        return None
    if not isinstance(config.task, CausalLM):
        return Packer()
    return Packer(answers=prompt.answers, end=prompt.end, loss=config.task.loss)


_kept: dict[str, OrderedDict[str, Any]] = {}


def shared(config: Config, kind: str, key: Any, build: Callable[[], T], most: int = KEPT) -> T:
    """Return what `build` returns; the runs of a sweep that follow each other in a process build it once for a key.

    Args:
        config: of the run.
        kind: of thing.
        key: what the thing depends on.
        build: makes it.
        most: how many of the kind are kept; older ones are let go before another is made.
    """
    if config.sweep.name is None:
        return build()
    things = _kept.setdefault(kind, OrderedDict())
    name = digest_of(key)
    if name not in things:
        while len(things) >= most:
            things.popitem(last=False)
        things[name] = build()
    things.move_to_end(name)
    return things[name]  # type: ignore[no-any-return]


def let_go(kind: str | None = None) -> None:
    """Keep nothing of a kind, or nothing at all, for further runs."""
    for name in [kind] if kind is not None else list(_kept):
        _kept.pop(name, None)


def _with_digest(examples: Examples) -> tuple[Examples, str]:
    return examples, examples.digest()


def _backbone(config: Config) -> tuple[Backbone, "PreTrainedTokenizerBase", int]:
    backbone = locate_backbone(config.model)
    return backbone, load_tokenizer(backbone), max_positions(backbone)


def _token_key(basis: Basis) -> list[Any]:
    return [basis.digest, basis.backbone.revision, asdict(basis.prompt), basis.config.data.max_length]
