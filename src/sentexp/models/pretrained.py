"""Pretrained weights as files: any source becomes an ordinary local folder of safetensors.

A GGUF file and a random model are written once into the cache, atomically, under a name that says what they hold.
"""

import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from sentexp.config import ModelConfig, PackageFile, PackageModel, RandomWeights
from sentexp.errors import UserError, require
from sentexp.system.archives import unpack
from sentexp.system.checksums import is_unchanged, write_checksums
from sentexp.system.console import tell
from sentexp.system.hub import is_local, local_path, snapshot
from sentexp.system.package_files import cache_dir, locate, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 1 << 20

_unchanged: set[Path] = set()
"""Folders in the cache that this process has made, or whose bytes it has compared."""


@dataclass(kw_only=True, slots=True)
class Backbone:
    """A pretrained transformer as files: its folder, and a revision that changes when its weights do."""

    folder: Path
    revision: str


def locate_backbone(model: ModelConfig) -> Backbone:
    """Return the folder of the backbone, converting, creating or downloading it where needed.

    Raises:
        UserError: a missing path, an untrusted file, a folder without safetensors, or a hub that does not give it.
    """
    if model.path is None:
        if model.package is not None:
            return _from_package(model.package)
        assert model.random is not None
        return _from_random(model.random)
    if not is_local(model.path):
        folder = snapshot("model.path", model.path, model.revision, "model")
        return Backbone(folder=folder, revision=folder.name)
    path = local_path("model.path", model.path)
    if path.suffix == ".gguf" and path.is_file():  # nor a device, which has no end
        return _from_gguf(path, sha256_of(path))
    require(
        (path / "config.json").is_file() and any(path.glob("*.safetensors")),
        f"model.path={model.path} must be a folder with config.json and *.safetensors, a GGUF file, or a hub id "
        "(pickled .bin weights are never loaded: convert them to safetensors first).",
    )
    return Backbone(folder=path, revision=_folder_digest(path))


def _from_package(package: PackageModel) -> Backbone:
    """Return a model in an installed package: safetensors are read where they are, once every file is proved.

    Those in an archive are unpacked once.
    """
    if package.pieces:
        unpacked = _build_once(f"unpacked-{package.sha256[:16]}", lambda folder: _unpack(package, folder))
        return Backbone(folder=unpacked, revision=package.sha256)
    file = locate(package)
    if not package.beside:
        return _from_gguf(file, package.sha256)
    folder = Path(package.file).parent
    for name, sha256 in package.beside.items():
        locate(PackageFile(distribution=package.distribution, file=str(folder / name), sha256=sha256))
    return Backbone(folder=file.parent, revision=package.sha256)


def _unpack(package: PackageModel, folder: Path) -> None:
    place = PurePosixPath(package.file)
    members = {place.name: package.sha256} | package.beside
    named = {str(place.parent / name): sha256 for name, sha256 in members.items()}
    unpack(list(package.pieces.values()), named, folder)


def _from_gguf(file: Path, sha256: str) -> Backbone:
    """Convert a GGUF file once: packed weights train slowly and cannot be saved."""

    def convert(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        source = {"gguf_file": file.name, "local_files_only": True}
        try:
            AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **source
            )
        except (ValueError, OSError, KeyError, IndexError, struct.error) as error:
            raise UserError(f"model.path={file} is not a GGUF file that transformers can convert: {error}") from None
        model.save_pretrained(folder)

    return Backbone(folder=_build_once(f"gguf-{sha256[:16]}", convert), revision=sha256)


def _from_random(shape: RandomWeights) -> Backbone:
    def create(folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = _byte_tokenizer()
        config = LlamaConfig(
            **asdict(shape),
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    digest = hashlib.sha256(json.dumps(asdict(shape), sort_keys=True).encode()).hexdigest()
    return Backbone(folder=_build_once(f"random-{digest[:16]}", create), revision=digest)


def _byte_tokenizer() -> "PreTrainedTokenizerBase":
    """Return a tokenizer of 256 bytes and an end-of-text token that doubles as padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def _build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Build a folder in the cache unless it is there, unchanged; it appears under its name only when it is whole."""
    from filelock import FileLock

    target = cache_dir() / "models" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target in _unchanged and target.is_dir():
        return target
    with FileLock(f"{target}.lock"):
        if not is_unchanged(target):
            if target.is_dir():
                tell(f"{target} is damaged, or of an earlier release: it is made again.")
            unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=target.parent))
            try:
                build(unfinished)
                write_checksums(unfinished)
                shutil.rmtree(target, ignore_errors=True)
                unfinished.replace(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    _unchanged.add(target)
    return target


def _folder_digest(folder: Path) -> str:
    """Return a digest of a model folder: its configuration, and size, head and tail of each file of weights.

    The head of a safetensors file holds names and shapes; the tail is a sample of the weights, so that folders of
    many gigabytes are compared in milliseconds.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(SAMPLE))
            content.seek(max(0, size - SAMPLE))
            digest.update(content.read(SAMPLE))
    return digest.hexdigest()
