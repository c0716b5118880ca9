"""What a folder of weights is, by its configuration: its architecture, its limits, and what it can be used for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.errors import UserError, first_line, require
from sentexp.models.encoders import ENCODERS
from sentexp.models.fast import encoder
from sentexp.models.fast.padding_free import PADDING_FREE_ARCHITECTURES
from sentexp.models.fast.support import ARCHITECTURES
from sentexp.models.pretrained import Backbone
from sentexp.models.structure import output_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_POSITION = 2
"""Of encoders that count positions from their pad id, which is 1 in all of them."""
CLASSIFIER = "ForSequenceClassification"
"""The end of the name of transformers' classifiers."""


MOST = {
    "num_hidden_layers": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "num_attention_heads": 100_000,
    "vocab_size": 100_000_000,
}
"""Of the sizes in a configuration, far above those of any model: transformers would build whatever a file says."""


def read_config(backbone: Backbone) -> Any:
    """Return transformers' configuration of a backbone.

    Raises:
        UserError: an architecture that the installed transformers does not have, or sizes that no model has.
    """
    from transformers import AutoConfig

    _require_sizes(backbone.folder / "config.json")
    try:
        return AutoConfig.from_pretrained(backbone.folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"model.path={backbone.folder} has a config.json that transformers cannot read: {first_line(error)}"
        ) from None


def _require_sizes(file: Path) -> None:
    """Refuse a configuration before transformers allocates what it says."""
    try:
        facts = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return  # which transformers says
    require(isinstance(facts, dict), f"{file} must hold a JSON object, as transformers writes it.")
    for part in (facts, facts.get("text_config")):
        for name, most in MOST.items():
            size = part.get(name, 1) if isinstance(part, dict) else 1
            require(
                size is None or (isinstance(size, int) and 0 < size <= most),
                f"{file} says {name}={size!r}, which is not the size of a model: it must be from 1 to {most:,}.",
            )


def model_type(backbone: Backbone) -> str:
    """Return transformers' name of the backbone's architecture: of the whole, where it reads pictures as well."""
    return str(read_config(backbone).model_type)


def max_positions(backbone: Backbone) -> int:
    """Return the most tokens that the backbone has positions for."""
    config = read_config(backbone).get_text_config()
    known = ENCODERS.get(config.model_type)
    taken = FIRST_POSITION if known is not None and known.counts_from_pad else 0
    return int(config.max_position_embeddings) - taken


def require_own_tokenizer(backbone: Backbone, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer with more tokens than the backbone has embeddings; added ones that no text has do not count.

    Raises:
        UserError: it is of another model.
    """
    embeddings = int(read_config(backbone).get_text_config().vocab_size)
    require(
        tokenizer.vocab_size <= embeddings,
        f"model.path={backbone.folder} has a tokenizer of {tokenizer.vocab_size:,} tokens and a model of "
        f"{embeddings:,}: use the tokenizer that the model was trained with.",
    )


def require_supported(backbone: Backbone, name: str, answers: bool) -> None:
    """Refuse an architecture that cannot do a task.

    Args:
        backbone: of the run.
        name: what the user calls it, with its key.
        answers: whether the task is to answer a prompt, not to classify with a head.

    Raises:
        UserError: an encoder-decoder, an encoder that has to answer, or one that was never tried.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    config = read_config(backbone)
    kind = config.get_text_config().model_type
    encodes = kind in ENCODERS or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    supported = f"the encoders {', '.join(ENCODERS)}, and decoders such as llama, qwen3 or gpt2"
    require(
        not config.is_encoder_decoder,
        f"{name} is {kind}, an encoder-decoder, which sentexp does not support: it takes {supported}.",
    )
    require(
        not getattr(config.get_text_config(), "use_bidirectional_attention", None),
        f"{name} is a {kind} whose tokens see those behind them (use_bidirectional_attention), which sentexp supports "
        f"in encoders only: it takes {supported}.",
    )
    if answers:
        require(
            not encodes and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            f"{name} is {kind}, {'an encoder' if encodes else 'no language model'}, which writes no answers: use "
            "task=seq_cls, or a decoder such as llama, qwen3 or gpt2.",
        )
    else:
        require(
            kind in ENCODERS or (not encodes and kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
            f"{name} is {kind}, which task=seq_cls does not support: it takes {supported}.",
        )


@dataclass(kw_only=True, slots=True)
class Support:
    """What is computed how for an architecture: rows without padding, layers of sentexp's own, runs together (`fuses`).

    Its frozen weights can be kept packed where it `quantizes`.
    """

    architecture: str
    encodes: bool
    packs: bool
    own_layers: bool
    fuses: bool
    quantizes: bool = True


def supported() -> list[Support]:
    """Return the architectures that were compared with transformers' own; other decoders are padded."""
    encoders = [
        Support(architecture=name, encodes=True, packs=one.packs, own_layers=name in encoder.LAYERS, fuses=False)
        for name, one in ENCODERS.items()
    ]
    decoders = [
        Support(architecture=name, encodes=False, packs=True, own_layers=own, fuses=own)
        for name in PADDING_FREE_ARCHITECTURES
        for own in (name in ARCHITECTURES,)
    ]
    return [*encoders, *decoders]


def is_classifier(config: Any, folder: Path) -> bool:
    """Tell whether a folder holds a classifier with its head, by its configuration and its weights."""
    named = any(name.endswith(CLASSIFIER) for name in config.architectures or ())
    return named and holds(folder, output_path(config))


def holds(folder: Path, module: str) -> bool:
    """Tell whether the files of a folder hold weights of a module."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if any(name.startswith(f"{module}.") for name in tensors.keys()):  # noqa: SIM118 (not a dict)
                return True
    return False
