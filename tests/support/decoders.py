"""Small decoders with random weights in the hub's files."""

from pathlib import Path
from typing import Any

import encoders
import torch

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 162, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def write_decoder(folder: Path, kind: str, **changes: Any) -> None:
    """Write a pretrained decoder with the tokenizer of an encoder.

    Args:
        folder: to write to.
        kind: transformers' name of the architecture.
        changes: of its configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    usual = AutoConfig.for_model(kind)
    wanted = {name: value for name, value in (SHAPE | changes).items() if hasattr(usual, name)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **wanted)).save_pretrained(folder)
    encoders.write_tokenizer(folder, "bert")
