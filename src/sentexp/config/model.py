"""`conf/model/`: the backbone, and where it comes from."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sentexp.config.checks import check_ranges, check_switch, number
from sentexp.config.origin import title
from sentexp.errors import require


class Attention(Enum):
    """Attention implementation, by transformers' names; `auto` lets transformers choose."""

    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class HeadStart(Enum):
    """Where a classification head starts: at that of a checkpoint which has one already, or drawn anew."""

    auto = "auto"
    new = "new"


@dataclass(kw_only=True, slots=True)
class PackageFile:
    """A file inside an installed distribution, trusted by its SHA-256 and never imported."""

    distribution: str
    file: str
    sha256: str


@dataclass(kw_only=True, slots=True)
class PackageModel(PackageFile):
    """A GGUF file, or safetensors with the files `beside` them that are read too: their names and SHA-256.

    Where there are `pieces`, all of these are in a zip archive, of which each of several distributions holds a piece;
    `file` is then the path within it.
    """

    beside: dict[str, str]
    pieces: dict[str, PackageFile]


@dataclass(kw_only=True, slots=True)
class RandomWeights:
    """The shape of a Llama-architecture model with random weights and a byte-level tokenizer."""

    hidden_size: int = number(ge=1)
    intermediate_size: int = number(ge=1)
    num_hidden_layers: int = number(ge=1)
    num_attention_heads: int = number(ge=1)
    num_key_value_heads: int

    def __post_init__(self) -> None:
        """Refuse shapes that no attention layer can have."""
        check_ranges(self, "model.random")
        require(
            self.hidden_size % self.num_attention_heads == 0 and self.hidden_size // self.num_attention_heads % 2 == 0,
            f"model.random.hidden_size={self.hidden_size} must be an even multiple of "
            f"model.random.num_attention_heads={self.num_attention_heads}.",
        )
        require(
            self.num_key_value_heads > 0 and self.num_attention_heads % self.num_key_value_heads == 0,
            f"model.random.num_key_value_heads={self.num_key_value_heads} must divide "
            f"model.random.num_attention_heads={self.num_attention_heads}.",
        )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The backbone: `path` if given, else the installed `package`, else `random` weights."""

    name: str
    path: str | None
    revision: str | None
    package: PackageModel | None
    random: RandomWeights | None
    attn_implementation: Attention
    keep_dequantized: Any  # auto, true or false
    labels: Any
    head: HeadStart

    @property
    def title(self) -> str:
        """What the backbone is called: the name of its option only where it is the option's own."""
        return title("model", self)

    @property
    def given_as(self) -> str:
        """The key that names the backbone, and its value."""
        return f"model={self.name}" if self.path is None else f"model.path={self.path}"

    def __post_init__(self) -> None:
        """A backbone must come from somewhere; labels are names."""
        require(
            self.path is not None or self.package is not None or self.random is not None,
            f"model.path is empty and model={self.name} has no embedded weights: pass model.path=<folder, GGUF file "
            "or hub id>.",
        )
        check_switch("model.keep_dequantized", self.keep_dequantized)
        if self.labels is not None:
            self.labels = _read_labels(self.labels)


def _read_labels(given: object) -> list[str]:
    """Return the names of a checkpoint's labels."""
    names = [str(name) for name in given] if isinstance(given, list) else []
    require(
        len(names) > 1 and len({name.casefold() for name in names}) == len(names),
        f"model.labels={given} must be a list of different labels in the order of the checkpoint's, as in "
        "[negative,positive]; null is what the checkpoint calls them.",
    )
    return names
