"""The backbone: any source becomes an ordinary local folder of safetensors, and is loaded from there.

A GGUF file and a random model are written once into the cache, atomically, under a name that says what they hold.
"""

import copy
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from sentexp.config import (
    Attention,
    Bias,
    FullFineTuning,
    Lora,
    ModelConfig,
    PeftConfig,
    Precision,
    Quantization,
    RandomWeights,
)
from sentexp.errors import UserError, require
from sentexp.system.hub import is_local, local_path, snapshot
from sentexp.system.package_files import cache_dir, locate, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
HEAD_NAMES = ("score", "classifier")
SAMPLE = 1 << 20


@dataclass(kw_only=True, slots=True)
class Backbone:
    """A pretrained transformer as files: its folder, and a revision that changes when its weights do."""

    folder: Path
    revision: str


@dataclass(kw_only=True, slots=True)
class Loading:
    """How weights are loaded.

    `storage` says how frozen linear layers are quantised. Frozen weights are stored in `precision`, the arithmetic;
    those that train (`trains_backbone`) in float32. Quantised ones are placed on `device`.
    """

    storage: PeftConfig
    attention: Attention
    precision: Precision
    device: torch.device
    trains_backbone: bool = False


def locate_backbone(model: ModelConfig) -> Backbone:
    """Return the folder of the backbone, converting, creating or downloading it where needed.

    Raises:
        UserError: a missing path, an untrusted file, a folder without safetensors, or a hub that does not give it.
    """
    if model.path is None:
        if model.package is not None:
            return _from_gguf(locate(model.package), model.package.sha256)
        assert model.random is not None
        return _from_random(model.random)
    if not is_local(model.path):
        folder = snapshot("model.path", model.path, model.revision, "model")
        return Backbone(folder=folder, revision=folder.name)
    path = local_path("model.path", model.path)
    if path.suffix == ".gguf":
        return _from_gguf(path, sha256_of(path))
    require(
        (path / "config.json").is_file() and any(path.glob("*.safetensors")),
        f"model.path={model.path} must be a folder with config.json and *.safetensors, a GGUF file, or a hub id "
        "(pickled .bin weights are never loaded: convert them to safetensors first).",
    )
    return Backbone(folder=path, revision=_folder_digest(path))


def load_tokenizer(backbone: Backbone) -> "PreTrainedTokenizerBase":
    """Return the tokenizer, with a pad token (law 4): its own, else its end-of-text, else its first token.

    Pooling is by position, so the choice cannot change a result.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone.folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise UserError(
            f"model.path={backbone.folder} holds no tokenizer that transformers can read "
            f"({str(error).splitlines()[0]}): add tokenizer.json or tokenizer.model with tokenizer_config.json."
        ) from None
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        end = AutoConfig.from_pretrained(backbone.folder, local_files_only=True).eos_token_id
        end = end[0] if isinstance(end, list) else end
        own = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else end
        known = own is not None and own < len(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own if known else 0)
    return tokenizer


def max_positions(backbone: Backbone) -> int:
    """Return the most tokens that the backbone has positions for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(backbone.folder, local_files_only=True)
    return int(config.get_text_config().max_position_embeddings)


def model_type(backbone: Backbone) -> str:
    """Return transformers' name of the backbone's architecture."""
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(backbone.folder, local_files_only=True).get_text_config().model_type)


def load_classifier(
    backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", labels: list[str], load: Loading
) -> "PreTrainedModel":
    """Return transformers' sequence classifier over the backbone, its head fresh, float32 and never quantised.

    Args:
        backbone: where the weights are.
        tokenizer: gives the pad id.
        labels: class names, in the order of the logits.
        load: how.

    Raises:
        UserError: weights that do not fit the architecture, or an architecture without a sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification

    named = dict(enumerate(labels))
    options = {"num_labels": len(labels), "id2label": named, "label2id": {name: index for index, name in named.items()}}
    model = _load(AutoModelForSequenceClassification, backbone, tokenizer, load, **options)
    head_of(model).float()
    return model


def load_language_model(backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", load: Loading) -> "PreTrainedModel":
    """Return transformers' causal language model over the backbone; its output matrix is never quantised.

    Args:
        backbone: where the weights are.
        tokenizer: gives the pad id.
        load: how.

    Raises:
        UserError: weights that do not fit the architecture, or an architecture that is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, backbone, tokenizer, load)


def outline(backbone: Backbone, labels: list[str] | None) -> "PreTrainedModel":
    """Return the model as shapes without weights (torch's `meta` device): enough to count, however large it is.

    Args:
        backbone: whose configuration it has.
        labels: class names of a sequence classifier; None is the causal language model.

    Raises:
        UserError: an architecture without such a model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    _silence_bitsandbytes()
    options = {} if labels is None else {"num_labels": len(labels)}
    config = AutoConfig.from_pretrained(backbone.folder, local_files_only=True, **options)
    auto = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            return auto.from_config(config)
    except ValueError as error:
        raise UserError(f"model.path={backbone.folder} cannot be loaded: {str(error).splitlines()[0]}.") from error


def can_be_shared(peft: PeftConfig) -> bool:
    """Tell whether runs of this kind can follow each other on the same weights.

    Not if they change them; nor in int8, whose layers move what they need out of the weights when they are first used.
    """
    trains_biases = isinstance(peft, Lora) and peft.bias is not Bias.none
    return not (isinstance(peft, FullFineTuning) or trains_biases or peft.quantization is Quantization.int8)


def twin(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model of modules of its own around the same weights, but for a head of its own, initialised anew."""
    head = find_head(model)
    own = set() if head is None else {id(parameter) for parameter in head.parameters()}
    common = [*model.parameters(), *model.buffers()]
    common += [module.quant_state for module in model.modules() if getattr(module, "quant_state", None) is not None]
    other = copy.deepcopy(model, {id(thing): thing for thing in common if id(thing) not in own})
    if head is not None:
        fresh = head_of(other)
        with torch.no_grad():
            fresh.weight.normal_(0, other.config.get_text_config().initializer_range)
            if fresh.bias is not None:
                fresh.bias.zero_()
    return other


def _load(
    auto: Any, backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", load: Loading, **options: Any
) -> "PreTrainedModel":
    from transformers.utils import logging

    if load.storage.quantization is not Quantization.none:
        options |= {"quantization_config": _bitsandbytes(load), "device_map": {"": load.device}}
    if load.attention is not Attention.auto:
        options["attn_implementation"] = load.attention.name
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _silence_bitsandbytes()
    try:
        model, report = auto.from_pretrained(
            backbone.folder,
            dtype=torch.float32 if load.trains_backbone else DTYPES[load.precision],
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        raise UserError(f"model.path={backbone.folder} cannot be loaded: {str(error).splitlines()[0]}.") from error
    missing = [name for name in report["missing_keys"] if name.partition(".")[0] not in HEAD_NAMES]
    require(
        not missing and not report["mismatched_keys"],
        f"model.path={backbone.folder} lacks weights that its architecture needs, so they would be random: "
        f"{', '.join(sorted(missing)[:5]) or report['mismatched_keys']}.",
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    _evaluate_as_trained(model)
    return model


def _silence_bitsandbytes() -> None:
    """Keep it from asking for a package that fetches code from the hub."""
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)


def _evaluate_as_trained(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from repacking 4-bit weights for evaluation, as it does on processors with AVX512-BF16.

    The repacked product rounds to bfloat16 whatever the precision, and fails unless a layer's outputs divide by 32.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def find_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """Return the classification head of a transformers model, wrapped by PEFT or not; a language model has none."""
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.split(".")[-1] in HEAD_NAMES:
            return module
        if path.split(".")[-1] in HEAD_NAMES and hasattr(module, "modules_to_save"):
            return module.modules_to_save["default"]  # type: ignore[no-any-return]
    return None


def base_of(model: torch.nn.Module) -> Any:
    """Return the transformers model, with its adapter inside where PEFT has put one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def shardable_parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a model's backbone, the backbone, and the head if there is one."""
    whole = base_of(model)
    head = find_head(model)
    backbone = whole if head is None else whole.base_model
    layers = [module for module in backbone.modules() if type(module).__name__ in (whole._no_split_modules or ())]
    return [*layers, backbone, *([] if head is None else [head])]


def head_of(model: torch.nn.Module) -> torch.nn.Linear:
    """Return the classification head of a transformers sequence classifier, wrapped by PEFT or not.

    Raises:
        UserError: the model has none.
    """
    head = find_head(model)
    if head is not None:
        return head
    raise UserError(
        f"{type(model).__name__} has no linear head named {' or '.join(HEAD_NAMES)} over the last token: task=seq_cls "
        "needs a decoder such as Llama or GPT-2."
    )


def _bitsandbytes(load: Loading) -> Any:
    from transformers import BitsAndBytesConfig

    storage = load.storage
    if storage.quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[*HEAD_NAMES, "lm_head"])
    compute = load.precision if storage.compute_dtype is Precision.auto else storage.compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=storage.quantization.name,
        bnb_4bit_use_double_quant=storage.double_quant,
        bnb_4bit_compute_dtype=DTYPES[compute],
        llm_int8_skip_modules=[*HEAD_NAMES, "lm_head"],
    )


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
            raise UserError(f"model.path={file} is no GGUF file that transformers can convert: {error}") from None
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
    """Build a folder in the cache unless it is there; it appears under its name only when it is whole."""
    from filelock import FileLock

    target = cache_dir() / "models" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=target.parent))
            try:
                build(unfinished)
                unfinished.replace(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _folder_digest(folder: Path) -> str:
    """Return a digest of a model folder: its configuration, and size, head and tail of each file of weights.

    The head of a safetensors file holds names and shapes; the tail is a sample of the weights, so that folders of
    many gigabytes are told apart in milliseconds.
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
