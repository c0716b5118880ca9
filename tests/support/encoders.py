"""Small encoders with random weights in the hub's files: configuration, tokenizer, safetensors."""

from pathlib import Path
from typing import Any

import torch

CORPUS = (
    "a warm and funny film that earns every laugh the cast is wonderful from first scene to last never dull "
    "a cold and clumsy film that wastes its cast the plot makes no sense badly shot and always dull two hours"
)
SHAPE = {
    "hidden_size": 32,
    "embedding_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0, "max_relative_positions": -1,
        "pooler_hidden_size": 32,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "eurobert": {"num_key_value_heads": 2},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}  # fmt: skip
"""What the configurations of an architecture have beside the common shape."""
FROM_ONE = ("roberta", "xlm-roberta", "mpnet")
"""Architectures whose tokenizers have <s> as 0, <pad> as 1 and </s> as 2."""
POSITIONS = 162


def config_of(kind: str, **changes: Any) -> Any:
    """Return the configuration of a small encoder without dropout."""
    from transformers import AutoConfig

    usual = AutoConfig.for_model(kind)
    first, pad, last = (0, 1, 2) if kind in FROM_ONE else (2, 0, 3)
    common = {name: value for name, value in SHAPE.items() if hasattr(usual, name)}
    common |= {name: 0.0 for name in vars(usual) if "drop" in name and isinstance(getattr(usual, name), float)}
    common |= {"vocab_size": 300, "max_position_embeddings": POSITIONS, "pad_token_id": pad, "bos_token_id": first}
    return AutoConfig.for_model(kind, **common | {"eos_token_id": last} | OWN.get(kind, {}) | changes)


def write_encoder(folder: Path, kind: str, auto: str = "AutoModelForMaskedLM", seed: int = 0, **changes: Any) -> Any:
    """Write a pretrained encoder as the hub has it, and return the model.

    Args:
        folder: to write to.
        kind: transformers' name of the architecture.
        auto: the class of what was pretrained, or is a classifier already.
        seed: of the weights.
        changes: of its configuration.
    """
    import transformers

    config = config_of(kind, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(config)
        for name, parameter in model.named_parameters():
            scales = parameter.ndim == 1 and name.endswith("weight")
            parameter.data.normal_(mean=float(scales), std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, kind)
    return model


def write_tokenizer(folder: Path, kind: str) -> None:
    """Write a tokenizer of words and bytes that puts a first and a last token around a text, as the hub's do."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = ("<s>", "<pad>", "</s>", "<unk>") if kind in FROM_ONE else ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    first, last, pad = (names[0], names[2], names[1]) if kind in FROM_ONE else (names[2], names[3], names[0])
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(name, special=True) for name in names]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([CORPUS], trainer)
    ends = [(name, made.token_to_id(name)) for name in (first, last)]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ends
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, cls_token=first, sep_token=last, bos_token=first, eos_token=last
    ).save_pretrained(folder)
