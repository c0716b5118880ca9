"""Adapters that begin with a part of the weights, saved as plain LoRA over the weights as they were.

PiSSA (Meng et al. 2024, arXiv:2404.02948) begins with the largest singular vectors of a weight, OLoRA (Büyükakyüz 2024,
arXiv:2406.01775) with a part of its QR decomposition; of CorDA and LoRA-GA `start_from_data` tells. All take A0 and B0
out of it, so that W = W_rest + s B0 A0. What is trained is then W_rest + s B A = W + s (B A - B0 A0), a LoRA of twice
the rank over W: [B, -B0] and [A; A0].
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

FACTORS = ("lora_A", "lora_B")


def remember_start(model: nn.Module) -> None:
    """Keep a copy of how the adapter of a PEFT model begins; of shapes without weights there is none."""
    factors = {name: value for name, value in model.named_parameters() if any(part in name for part in FACTORS)}
    if any(value.is_meta for value in factors.values()):
        return
    model.adapter_at_start = {name: value.detach().cpu().clone() for name, value in factors.items()}  # type: ignore[assignment]


def over_original_weights(model: nn.Module, state: dict[str, Tensor], config: Any) -> tuple[dict[str, Tensor], Any]:
    """Return what trains, and its PEFT configuration, as LoRA over the weights as they were before the adapter.

    Args:
        model: with the adapter.
        state: what trains, by name.
        config: PEFT's, of the adapter; it is left as it is.
    """
    start: dict[str, Tensor] | None = getattr(model, "adapter_at_start", None)
    if start is None:
        return state, config
    rank, scale = 2 * config.r, math.sqrt(2) if config.use_rslora else 2
    converted = copy.copy(config)
    converted.r, converted.lora_alpha, converted.init_lora_weights = rank, scale * config.lora_alpha, True
    converted.rank_pattern = {key: 2 * own for key, own in config.rank_pattern.items()}
    converted.alpha_pattern = {key: scale * own for key, own in config.alpha_pattern.items()}
    converted.corda_config = converted.lora_ga_config = None
    doubled = {
        name: torch.cat([state[name], value], 0) if "lora_A" in name else torch.cat([state[name], -value], 1)
        for name, value in start.items()
    }
    return state | doubled, converted
