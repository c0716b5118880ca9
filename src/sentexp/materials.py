"""What a run is made of, before any training second: device, backbone, tokenizer, examples, their tokens and audit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sentexp import console
from sentexp.config import Config, Precision
from sentexp.data.audit import DataAudit, audit
from sentexp.data.splits import NAMES, Examples, load_examples
from sentexp.data.tokens import TokenRows, tokenize
from sentexp.errors import require
from sentexp.hardware import choose_device, choose_precision, reset_peak_memory
from sentexp.models.backbone import Backbone, load_tokenizer, locate_backbone, max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class Materials:
    """What every attempt at a run shares."""

    config: Config
    device: torch.device
    precision: Precision
    backbone: Backbone
    tokenizer: "PreTrainedTokenizerBase"
    examples: Examples
    tokens: dict[str, TokenRows]
    data_audit: DataAudit


def gather(config: Config, whole: bool = False, near: bool = False) -> Materials:
    """Find backbone and data, tokenise, audit, and show what was found.

    Args:
        config: of the run.
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
    require(
        config.data.max_length <= max_positions(backbone),
        f"data.max_length={config.data.max_length} is more than the {max_positions(backbone)} positions of "
        f"model={config.model.name}.",
    )
    tokenizer = load_tokenizer(backbone)
    tokens = {
        split: tokenize(
            examples.split(split),
            tokenizer,
            config.task.template,
            config.data.max_length,
            config.trainer.progress_bar,
        )
        for split in NAMES
    }
    data_audit = audit(config.data.name, examples, tokens, config.data.max_length, near)
    console.print_data(data_audit)
    return Materials(
        config=config,
        device=device,
        precision=precision,
        backbone=backbone,
        tokenizer=tokenizer,
        examples=examples,
        tokens=tokens,
        data_audit=data_audit,
    )
