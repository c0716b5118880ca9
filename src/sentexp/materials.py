"""What a run is made of, before any training second: device, backbone, tokenizer, examples, prompt, tokens, audit."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sentexp import console
from sentexp.config import CausalLM, Config, Precision, Untuned
from sentexp.data.audit import DataAudit, audit
from sentexp.data.prompts import Prompt, build_prompt, choose_shots, holding_special_tokens, resolve_template
from sentexp.data.splits import NAMES, Examples, load_examples
from sentexp.data.tokens import TokenRows, tokenize
from sentexp.errors import require
from sentexp.hardware import choose_device, choose_precision, reset_peak_memory
from sentexp.models.backbone import Backbone, load_tokenizer, locate_backbone, max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class Materials:
    """What every attempt at a run shares. `prompt` frames the texts of `tokens`; `positions` is the model's limit."""

    config: Config
    device: torch.device
    precision: Precision
    backbone: Backbone
    tokenizer: "PreTrainedTokenizerBase"
    examples: Examples
    positions: int
    prompt: Prompt
    tokens: dict[str, TokenRows]
    data_audit: DataAudit


def gather(config: Config, whole: bool = False, near: bool = False) -> Materials:
    """Find backbone and data, tokenise, audit, and show what was found.

    Args:
        config: of the run; in the materials, a prompt template that was chosen by name stands as it is.
        whole: leave the subsets of the data out.
        near: look for near-duplicates as well.

    Raises:
        UserError: anything in the configuration or the data that the user can mend.
    """
    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    reset_peak_memory(device)
    examples = load_examples(config.data, whole)
    backbone = locate_backbone(config.model)
    positions = max_positions(backbone)
    require(
        config.data.max_length <= positions,
        f"data.max_length={config.data.max_length} is more than the {positions} positions of "
        f"model={config.model.name}.",
    )
    tokenizer = load_tokenizer(backbone)
    if isinstance(config.task, CausalLM):
        config = replace(config, task=replace(config.task, template=resolve_template(config.task, tokenizer)))
    prompt = build_prompt(config.task, tokenizer, examples.labels)
    tokens = tokenize_splits(config, examples, tokenizer, prompt, positions)
    data_audit = audit(config.data.name, examples, tokens, near)
    console.print_data(data_audit)
    materials = Materials(
        config=config,
        device=device,
        precision=precision,
        backbone=backbone,
        tokenizer=tokenizer,
        examples=examples,
        positions=positions,
        prompt=prompt,
        tokens=tokens,
        data_audit=data_audit,
    )
    return with_shots(materials) if isinstance(config.peft, Untuned) else materials


def with_shots(materials: Materials) -> Materials:
    """Return the materials of the untuned base: `task.shots` examples from train stand in its prompt."""
    task, examples = materials.config.task, materials.examples
    if not isinstance(task, CausalLM) or task.shots == 0:
        return materials
    fits = ~materials.tokens["train"].cut
    fits[holding_special_tokens(examples.train.column("text").to_pylist(), materials.tokenizer)] = False
    shots = choose_shots(examples, task, fits)
    prompt = build_prompt(task, materials.tokenizer, examples.labels, shots)
    tokens = tokenize_splits(materials.config, examples, materials.tokenizer, prompt, materials.positions)
    return replace(materials, prompt=prompt, tokens=tokens)


def tokenize_splits(
    config: Config, examples: Examples, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, positions: int
) -> dict[str, TokenRows]:
    """Return the tokens of every split in the frame of a prompt."""
    length, progress = config.data.max_length, config.trainer.progress_bar
    return {split: tokenize(examples.split(split), tokenizer, prompt, length, positions, progress) for split in NAMES}
