"""Every structured configuration: the types behind `conf/`, their ranges and the rules between their fields.

Standard library, omegaconf and hydra's ConfigStore only, so that a wrong key or value is refused before torch is
imported. The group options in `conf/<group>/<option>.yaml` give the values; this file gives types and meaning.
"""

import codecs
import functools
import math
import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sentexp.config.metric_names import COSTS, METRICS
from sentexp.errors import UserError, require


class Precision(Enum):
    """Arithmetic of the forward and backward pass; `auto` is bf16 where the hardware multiplies it natively."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Quantization(Enum):
    """How bitsandbytes stores the frozen backbone."""

    none = "none"
    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"


class Bias(Enum):
    """Which bias vectors train beside the adapter (PEFT's `bias`)."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


class Attention(Enum):
    """Attention implementation, by transformers' names; `auto` lets transformers choose."""

    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class HeadInit(Enum):
    """Start of the classification head: small normal numbers, or the output embeddings of the label words."""

    normal = "normal"
    label_words = "label_words"


class AnswerLoss(Enum):
    """What `task=causal_lm` learns from: the answer's tokens, the choice among the label words, or the whole text."""

    answer = "answer"
    label_words = "label_words"
    full = "full"


class PriorCorrection(Enum):
    """What is taken for a prompt's own preference among the labels, and divided out of the probabilities."""

    none = "none"
    contextual = "contextual"
    batch = "batch"


class OptimizerName(Enum):
    """The optimizer; the names with `8bit` or `paged` are bitsandbytes'."""

    adamw = "adamw"
    adafactor = "adafactor"
    sgd = "sgd"
    adamw_8bit = "adamw_8bit"
    paged_adamw_32bit = "paged_adamw_32bit"
    paged_adamw_8bit = "paged_adamw_8bit"


class Schedule(Enum):
    """Learning-rate schedule after warm-up, by transformers' names (`lr_scheduler_type`)."""

    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    polynomial = "polynomial"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"


class BadRows(Enum):
    """What to do with a row that cannot be used: stop at it, or leave it out, count it and tell."""

    error = "error"
    skip = "skip"


class Sampling(Enum):
    """How the rows of an epoch are drawn: each once, or with replacement so that classes or slices are as frequent."""

    natural = "natural"
    balanced_labels = "balanced_labels"
    balanced_slices = "balanced_slices"


class Sampler(Enum):
    """How a search proposes values: at random, in order, or from a model of the results so far (TPE, GP)."""

    tpe = "tpe"
    random = "random"
    grid = "grid"
    gp = "gp"


class Pruner(Enum):
    """What stops a run of a search before its end: see `sentexp.search.policies`."""

    none = "none"
    halving = "halving"
    median = "median"
    confident = "confident"


class Strategy(Enum):
    """The processes of a run: one; several, each with the whole model; several, each with a shard of every layer."""

    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"


class EvaluatedSplit(Enum):
    """A split whose predictions every run keeps."""

    validation = "validation"
    test = "test"


class TrackingBackend(Enum):
    """Where a run is recorded."""

    mlflow = "mlflow"
    none = "none"


@dataclass(kw_only=True, slots=True)
class PackageFile:
    """A file inside an installed distribution, trusted by its SHA-256 and never imported."""

    distribution: str
    file: str
    sha256: str


@dataclass(kw_only=True, slots=True)
class RandomWeights:
    """The shape of a Llama-architecture model with random weights and a byte-level tokenizer."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def __post_init__(self) -> None:
        """Refuse shapes that no attention layer can have."""
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            _at_least(f"model.random.{name}", getattr(self, name), 1)
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
    path: str | None = None
    revision: str | None = None
    package: PackageFile | None = None
    random: RandomWeights | None = None
    attn_implementation: Attention = Attention.auto

    def __post_init__(self) -> None:
        """A backbone must come from somewhere."""
        require(
            self.path is not None or self.package is not None or self.random is not None,
            f"model.path is empty and model={self.name} has no embedded weights: pass model.path=<folder, GGUF file "
            "or hub id>.",
        )


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    """What every way of training shares: the storage of the frozen backbone, and a learning rate that usually suits."""

    usual_lr: float
    quantization: Quantization = Quantization.none
    double_quant: bool = True
    compute_dtype: Precision = Precision.auto


@dataclass(kw_only=True, slots=True)
class Untuned(PeftConfig):
    """`peft=none`: nothing is trained; the backbone and a fresh head are evaluated as they are."""


@dataclass(kw_only=True, slots=True)
class HeadOnly(PeftConfig):
    """`peft=head`: the backbone is frozen and only the head is trained."""


@dataclass(kw_only=True, slots=True)
class FullFineTuning(PeftConfig):
    """`peft=full`: every weight is trained."""

    def __post_init__(self) -> None:
        """Quantised weights cannot be trained."""
        require(
            self.quantization is Quantization.none,
            f"peft=full cannot train quantised weights (peft.quantization={self.quantization.name}): use "
            "peft.quantization=none, or peft=qlora to train an adapter over them.",
        )


@dataclass(kw_only=True, slots=True)
class Lora(PeftConfig):
    """`peft=lora|qlora|dora`: low-rank adapters (Hu et al. 2021, Dettmers et al. 2023, Liu et al. 2024).

    `target_modules` is `all-linear`, a list of module names, or a regular expression over full module paths.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    bias: Bias = Bias.none
    target_modules: Any = "all-linear"
    layers_to_transform: list[int] | None = None
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        """Check ranks and targets."""
        _at_least("peft.r", self.r, 1)
        require(0 < self.alpha < math.inf, f"peft.alpha={self.alpha} must be above 0 (often twice peft.r).")
        require(0 <= self.dropout < 1, f"peft.dropout={self.dropout} must be at least 0 and below 1.")
        self.target_modules = _target_modules("peft.target_modules", self.target_modules)
        require(
            self.layers_to_transform is None
            or (
                len(self.layers_to_transform) > 0
                and (self.target_modules == "all-linear" or isinstance(self.target_modules, list))
            ),
            f"peft.layers_to_transform={self.layers_to_transform} must hold at least one layer, and goes with "
            "peft.target_modules=all-linear or a list of names; null is every layer.",
        )
        for layer in self.layers_to_transform or []:
            _at_least("peft.layers_to_transform", layer, 0)


@dataclass(kw_only=True, slots=True)
class IA3(PeftConfig):
    """`peft=ia3`: learned rescaling of activations (Liu et al. 2022). Null targets are PEFT's choice for the model."""

    target_modules: Any = None
    feedforward_modules: Any = None

    def __post_init__(self) -> None:
        """Feed-forward modules are a part of the targets."""
        require(
            (self.target_modules is None) == (self.feedforward_modules is None),
            "peft.target_modules and peft.feedforward_modules go together for peft=ia3: give both, or neither.",
        )
        if self.target_modules is not None:
            self.target_modules = _target_modules("peft.target_modules", self.target_modules)
            if self.feedforward_modules != []:  # an empty list: every target scales its output
                self.feedforward_modules = _target_modules("peft.feedforward_modules", self.feedforward_modules)


@dataclass(kw_only=True, slots=True)
class PackageTable(PackageFile):
    """A CSV file inside an installed distribution; `where` keeps the rows whose columns hold these values."""

    where: dict[str, str] = field(default_factory=dict)


AUTO = "auto"


@dataclass(kw_only=True, slots=True)
class Splits:
    """The source's name for each split; null means: carved from train by hash of the normalised text.

    `auto` is the source's own validation or test split if it has one by that name, and else null.
    """

    train: str = "train"
    validation: str | None = AUTO
    test: str | None = AUTO

    def __post_init__(self) -> None:
        """One split of the source is one split of the run (law 10)."""
        named = [name for name in (self.train, self.validation, self.test) if name not in (None, AUTO)]
        require(
            len(set(named)) == len(named),
            f"data.splits.train={self.train}, data.splits.validation={self.validation} and data.splits.test="
            f"{self.test} must be three different splits of the source; null carves one from train.",
        )


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What every data set shares: labels, splits by hash, subsets, imbalance.

    `labels` is a list of class names, in the order of the labels 0, 1, ...; or a mapping from the values of the label
    column to class names, where null leaves the rows of a value out; or null for the values that are found.
    """

    name: str
    labels: Any = None
    path: str | None = None
    revision: str | None = None
    strip: bool = True
    on_bad_rows: BadRows = BadRows.error
    deduplicate: bool = False
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    train_subset: float | None = None
    validation_subset: float | None = None
    subset_seed: int = 0
    class_weights: Any = None
    sampling: Sampling = Sampling.natural
    max_length: int = 256

    def __post_init__(self) -> None:
        """Check labels, fractions, subsets and weights."""
        require(
            self._is_somewhere(),
            f"data.path is empty and data={self.name} has no installed package: pass data.path=<folder, file or hub "
            "id>.",
        )
        self.labels = _labels(self.labels)
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            require(0 < value < 1, f"data.{name}={value} must be between 0 and 1.")
        require(
            self.validation_fraction + self.test_fraction < 1,
            f"data.validation_fraction={self.validation_fraction} and data.test_fraction={self.test_fraction} leave "
            "nothing to train on: their sum must stay below 1.",
        )
        for name in ("train_subset", "validation_subset"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < 1 or (value >= 1 and value % 1 == 0),
                f"data.{name}={value} must be a number of rows, a fraction below 1, or null for all rows.",
            )
        self._check_class_weights()
        require(
            self.sampling is not Sampling.balanced_slices or bool(self.slice_names()),
            f"data.sampling=balanced_slices draws the slices of data={self.name} equally often, but it has none: name "
            "a column with data.slices=<column>.",
        )
        _at_least("data.max_length", self.max_length, 1)

    def class_names(self) -> list[str] | None:
        """Return the classes in the order of their indices, or None when they are the values that are found."""
        if isinstance(self.labels, dict):
            return list(dict.fromkeys(name for name in self.labels.values() if name is not None))
        return self.labels  # type: ignore[no-any-return]

    def slice_names(self) -> list[str]:
        """Return the names of the columns whose values are slices."""
        return []

    def distribution(self) -> str | None:
        """Return the installed distribution that the rows come from, if they do."""
        return None

    def _is_somewhere(self) -> bool:
        return self.path is not None

    def _check_class_weights(self) -> None:
        given = self.class_weights
        require(
            given in (None, "balanced")
            or (
                isinstance(given, list)
                and all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in given)
                and (self.labels is None or len(given) == len(self.class_names() or []))
            ),
            f"data.class_weights={given} must be null, balanced, or one number above 0 for each of the classes "
            f"{self.class_names() or 'that the data hold'}.",
        )


@dataclass(kw_only=True, slots=True)
class TableData(DataConfig):
    """Rows of a table: `path` if given (file, folder or hub id), else the installed `package`.

    `encoding`, `delimiter` and `quoting` are null for: detected, by the ending of the file, by the ending of the file.
    """

    text: str = "text"
    label: str = "label"
    slices: Any = field(default_factory=list)
    group: str | None = None
    subset: str | None = None
    package: PackageTable | None = None
    splits: Splits = field(default_factory=Splits)
    encoding: str | None = None
    delimiter: str | None = None
    quoting: bool | None = None

    def __post_init__(self) -> None:
        """Check columns and the reading of text files."""
        self.slices = _names("data.slices", self.slices, "a column or a list of columns such as [language,source]")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise UserError(
                    f"data.encoding={self.encoding} is no encoding that Python knows: utf-8, latin-1, cp1252 and "
                    "utf-16 are usual, and null detects it."
                ) from None
        if self.delimiter == "\\t":  # as people type it in a shell
            self.delimiter = "\t"
        require(
            self.delimiter is None or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n'),
            f"data.delimiter={self.delimiter!r} must be one character such as ; or \\t, or null for the one that "
            "belongs to the ending of the file.",
        )
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the columns named in `data.slices`."""
        return list(self.slices)

    def distribution(self) -> str | None:
        """Return the distribution that holds the table, if no path is given."""
        return self.package.distribution if self.package is not None and self.path is None else None

    def _is_somewhere(self) -> bool:
        return self.path is not None or self.package is not None


@dataclass(kw_only=True, slots=True)
class PhraseBank(DataConfig):
    """Financial PhraseBank: the sentences on which at least `agreement` per cent of the annotators agree, or `all`."""

    agreement: str = "50"

    def __post_init__(self) -> None:
        """There are four levels."""
        require(
            self.agreement in AGREEMENT_LEVELS,
            f"data.agreement={self.agreement} must be one of {', '.join(AGREEMENT_LEVELS)}.",
        )
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the slice that each sentence has: the level at which its annotators agree."""
        return ["agreement"]


AGREEMENT_LEVELS = ("50", "66", "75", "all")
"""Per cent of the annotators that agree at least; a sentence of one level is a sentence of those before it."""


@dataclass(kw_only=True, slots=True)
class Multilingual(DataConfig):
    """Texts by language in folders of their own, with their own splits; `languages` is a list of folders, or `all`."""

    languages: Any = "all"

    def __post_init__(self) -> None:
        """Languages are a list, or all."""
        if self.languages != "all":
            self.languages = _names("data.languages", self.languages, "all, or a list such as [english,german]")
            require(bool(self.languages), "data.languages=[] names no language: use all, or a list of them.")
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the slice that each text has: its language."""
        return ["language"]


@dataclass(kw_only=True, slots=True)
class RatedTexts(DataConfig):
    """Texts with a mean human rating in [-4, 4]: negative, neutral within `neutral_band` of 0, or positive."""

    domains: Any = "all"
    neutral_band: float = 0.5
    files: dict[str, PackageFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Domains are those of the files."""
        if self.domains == "all":
            self.domains = list(self.files)
        self.domains = _names("data.domains", self.domains, f"all, or a list of {', '.join(self.files)}")
        wrong = [name for name in self.domains if name not in self.files]
        require(
            bool(self.domains) and not wrong,
            f"data.domains={self.domains} must be all, or a list of {', '.join(self.files)}.",
        )
        require(
            0 <= self.neutral_band < RATING_LIMIT,
            f"data.neutral_band={self.neutral_band} must be at least 0 and below {RATING_LIMIT}, the largest rating.",
        )
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the slice that each text has: its domain."""
        return ["domain"]

    def distribution(self) -> str | None:
        """Return the distribution that holds the files, if no path is given."""
        return self.files[self.domains[0]].distribution if self.path is None else None

    def _is_somewhere(self) -> bool:
        return True


RATING_LIMIT = 4.0


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """What the backbone is asked to do.

    `focal_gamma` is the gamma of the focal loss, which gives rows that are already right less weight (Lin et al. 2017,
    eq. 4); 0 is plain cross-entropy.
    """

    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        """Gamma is not negative."""
        require(
            0 <= self.focal_gamma < math.inf,
            f"task.focal_gamma={self.focal_gamma} must be 0 (cross-entropy) or more (2 is usual).",
        )


@dataclass(kw_only=True, slots=True)
class SequenceClassification(TaskConfig):
    """`task=seq_cls`: a linear head over the last token of the framed text (PEFT's `SEQ_CLS`).

    `template` frames each text; `{text}` stands for it.
    """

    template: str = "{text}"
    head_init: HeadInit = HeadInit.normal

    def __post_init__(self) -> None:
        """The text must appear once."""
        TaskConfig.__post_init__(self)
        _require_text_slot("task.template", self.template)


@dataclass(kw_only=True, slots=True)
class PromptTemplate:
    """A prompt for `task=causal_lm`: what is said, and the Jinja chat template that puts it together.

    `{labels}` stands for the label words ("negative or positive") and `{text}` for the text. `chat_template` gets the
    messages of the roles system, user and assistant, as in transformers; null is the tokenizer's own.
    """

    user: str
    system: str = ""
    chat_template: str | None = None

    def __post_init__(self) -> None:
        """The text must appear once."""
        _require_text_slot("user in task.template", self.user)
        _require_placeholders("user in task.template", self.user, "text", "labels")
        _require_placeholders("system in task.template", self.system, "labels")


@dataclass(kw_only=True, slots=True)
class CausalLM(TaskConfig):
    """`task=causal_lm`: the model reads an instruction and a text, and answers with a label (PEFT's `CAUSAL_LM`).

    `template` is `auto`, a name in `conf/template`, a YAML file, the template itself as a mapping, or a string that
    holds `{text}`. `system` replaces its system prompt. `label_words` is a list in the order of the labels, or a
    mapping from labels to words; null is the labels.
    """

    template: Any = "auto"
    system: str | None = None
    label_words: Any = None
    loss: AnswerLoss = AnswerLoss.answer
    length_normalization: bool = False
    calibration: PriorCorrection = PriorCorrection.none
    shots: int = 0
    shots_seed: int = 0
    generate: bool = False

    def __post_init__(self) -> None:
        """Read the template, and check the label words."""
        TaskConfig.__post_init__(self)
        if self.template != AUTO:
            self.template = load_template(self.template)
        _require_placeholders("task.system", self.system or "", "labels")
        self.label_words = _label_words(self.label_words)
        require(
            self.loss is not AnswerLoss.full or self.focal_gamma == 0,
            f"task.focal_gamma={self.focal_gamma} weighs answers, and task.loss=full learns the whole text: use "
            "task.loss=answer or label_words.",
        )
        _at_least("task.shots", self.shots, 0)
        _at_least("task.shots_seed", self.shots_seed, 0)


def load_template(given: object) -> PromptTemplate:
    """Return a template from its name in `conf/template`, a YAML file, a mapping, or a string that holds `{text}`.

    Raises:
        UserError: there is none by that name, it has a wrong key, or it has no place for the text.
    """
    if isinstance(given, PromptTemplate):
        return given
    if isinstance(given, str):
        if "{text}" in given:
            return replace(load_template("completion"), user=given)
        folder, own = conf_dir() / TEMPLATE_GROUP, Path(given).expanduser()
        named, names = folder / f"{given}.yaml", [AUTO, *sorted(file.stem for file in folder.glob("*.yaml"))]
        require(
            given in names or (own.suffix in (".yaml", ".yml") and own.is_file()),
            f"task.template={given!r} must be one of {', '.join(names)}, a YAML file that is there, or a string that "
            "holds {text}.",
        )
        try:
            given = OmegaConf.to_container(OmegaConf.load(named if given in names else own))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"task.template={own} is no YAML file: {str(error).splitlines()[0]}.") from None
    legal = [item.name for item in fields(PromptTemplate)]
    require(
        isinstance(given, dict)
        and "user" in given
        and set(given) <= set(legal)
        and all(isinstance(value, str) or (key == "chat_template" and value is None) for key, value in given.items()),
        f"task.template={given} must hold user (with {{text}} in it), and may hold system and chat_template, as texts.",
    )
    return PromptTemplate(**given)  # type: ignore[arg-type]


TEMPLATE_GROUP = "template"
"""The folder of `conf` whose files `task.template` names: no group of hydra's, so that a plain key chooses."""


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: OptimizerName
    lr: float
    head_lr: float | None = None
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    momentum: float = 0.0
    schedule: Schedule = Schedule.linear
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.lr > 0 and math.isfinite(self.lr), f"optim.lr={self.lr} must be a finite number above 0.")
        require(
            self.head_lr is None or self.head_lr > 0,
            f"optim.head_lr={self.head_lr} must be above 0, or null for optim.lr.",
        )
        require(0 <= self.weight_decay < math.inf, f"optim.weight_decay={self.weight_decay} must be 0 or more.")
        require(
            len(self.betas) == len(("beta1", "beta2")) and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas} must be two numbers of at least 0 and below 1.",
        )
        require(self.eps > 0, f"optim.eps={self.eps} must be above 0.")
        require(0 <= self.momentum < 1, f"optim.momentum={self.momentum} must be at least 0 and below 1.")
        require(0 <= self.warmup_ratio < 1, f"optim.warmup_ratio={self.warmup_ratio} must be at least 0 and below 1.")
        if self.warmup_steps is not None:
            _at_least("optim.warmup_steps", self.warmup_steps, 0)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The training loop. `batch_size` rows fill the memory; an optimizer step sees `accumulate_grad_batches` of them.

    With several processes (`strategy`), each takes its part of these rows.

    `max_tokens` fills the memory by tokens instead of by rows: an optimizer step then sees at most `max_tokens *
    accumulate_grad_batches` tokens, cut into `accumulate_grad_batches` parts of about as many, and `batch_size` does
    not count. `padding_free` and `compile` change how a batch is computed, never which rows it holds.

    `eval_steps` and `save_steps` count optimizer steps; an `eval_steps` below 1 is a fraction of an epoch, and null
    evaluates at the end of each epoch only.
    """

    max_epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 16
    max_tokens: int | None = None
    eval_batch_size: int = 32
    accumulate_grad_batches: int = 1
    precision: Precision = Precision.auto
    gradient_clip_val: float | None = 1.0
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    padding_free: bool = True
    compile: bool = False
    eval_steps: float | None = None
    save_steps: int = 25
    log_every_n_steps: int = 5
    monitor: str = "validation/accuracy"
    early_stopping_patience: int | None = None
    accelerator: str = "auto"
    strategy: Strategy = Strategy.single
    progress_bar: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_epochs", "batch_size", "eval_batch_size", "accumulate_grad_batches", "save_steps"):
            _at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("max_steps", "max_tokens", "log_every_n_steps", "early_stopping_patience"):
            if getattr(self, name) is not None:
                _at_least(f"trainer.{name}", getattr(self, name), 1)
        require(
            self.gradient_clip_val is None or self.gradient_clip_val > 0,
            f"trainer.gradient_clip_val={self.gradient_clip_val} must be above 0, or null for no clipping.",
        )
        require(
            self.eval_steps is None or 0 < self.eval_steps < 1 or (self.eval_steps >= 1 and self.eval_steps % 1 == 0),
            f"trainer.eval_steps={self.eval_steps} must be a number of steps, a fraction of an epoch below 1, or null.",
        )
        require(
            not self.compile or self.padding_free,
            "trainer.compile=true compiles the layers of the path without padding: leave trainer.padding_free=true.",
        )
        legal = [f"validation/{name}" for name in METRICS]
        require(self.monitor in legal, f"trainer.monitor={self.monitor} must be one of {', '.join(legal)}.")
        require(
            self.accelerator in ("auto", "cpu", "gpu"),
            f"trainer.accelerator={self.accelerator} must be auto, cpu or gpu.",
        )

    @property
    def fills_by(self) -> str:
        """The key that says what a micro-batch holds: `max_tokens` or `batch_size`."""
        return "batch_size" if self.max_tokens is None else "max_tokens"

    @property
    def micro_batch(self) -> int:
        """The size of a micro-batch, in tokens or in rows."""
        return self.batch_size if self.max_tokens is None else self.max_tokens

    @property
    def as_typed(self) -> str:
        """The effective batch as it is typed."""
        return (
            f"trainer.{self.fills_by}={self.micro_batch} trainer.accumulate_grad_batches={self.accumulate_grad_batches}"
        )


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where the run is recorded. Without `uri`, `MLFLOW_TRACKING_URI` counts, else `sqlite:///mlflow.db` here."""

    backend: TrackingBackend
    uri: str | None = None
    experiment: str = "sentexp"
    run_name: str | None = None
    system_metrics: bool = True

    def __post_init__(self) -> None:
        """MLflow refuses file stores, and an experiment needs a name."""
        require(bool(self.experiment.strip()), "tracking.experiment is empty: give the MLflow experiment a name.")
        require(
            self.uri is None or "://" in self.uri,
            f"tracking.uri={self.uri} must be an MLflow URI such as sqlite:///mlflow.db or http://127.0.0.1:5000.",
        )


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """What becomes of runs that are finished already, and what a sweep does when runs fail.

    `dry_run` trains nothing: what would be done is planned and printed.
    `name` is what tells a run of a sweep from the others, `parent` the sweep's MLflow run, `study` and `trial` are
    Optuna's names of a search and a run of it: the sweep gives them to its runs.
    """

    dry_run: bool = False
    rerun: bool = False
    max_failures: int | None = None
    name: str | None = None
    parent: str | None = None
    study: str | None = None
    trial: int | None = None

    def __post_init__(self) -> None:
        """At least one run must be let fail before the sweep stops."""
        require(
            self.max_failures is None or self.max_failures >= 1,
            f"sweep.max_failures={self.max_failures} must be 1 or more: the sweep stops when so many runs have failed "
            "(null: it goes on to its end).",
        )


@dataclass(kw_only=True)  # no slots: they take no name that is mangled
class SearchConfig:
    """`hydra/sweeper=optuna`: a search instead of a grid. Its keys are those of `hydra.sweeper`.

    `n_trials` are all trials of the search, those of earlier starts included; `n_jobs` are launched at once, where the
    launcher can. `objectives` are validation metrics and costs; none is `trainer.monitor`. Pruners look at each
    evaluation from `min_steps` optimizer steps on. `storage` is an SQLAlchemy URL; null is a file beside MLflow's.
    """

    _target_: str = "hydra_plugins.sentexp.OptunaSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    n_trials: int = 20
    n_jobs: int = 1
    sampler: Sampler = Sampler.tpe
    seed: int = 1
    objectives: list[str] = field(default_factory=list)
    pruner: Pruner = Pruner.none
    min_steps: int = 1
    reduction_factor: int = 3
    startup_trials: int = 4
    confidence: float = 0.99
    storage: str | None = None

    def __post_init__(self) -> None:
        """Check ranges and names."""
        for name, least in {"n_trials": 1, "n_jobs": 1, "min_steps": 1, "reduction_factor": 2}.items():
            _at_least(f"hydra.sweeper.{name}", getattr(self, name), least)
        _at_least("hydra.sweeper.startup_trials", self.startup_trials, 0)
        require(0 < self.confidence < 1, f"hydra.sweeper.confidence={self.confidence} must be above 0 and below 1.")
        legal = (*(f"validation/{name}" for name in METRICS), *COSTS)
        for name in self.objectives:
            require(
                name in legal,
                f"hydra.sweeper.objectives holds {name}, and must hold names from {', '.join(legal)}; the test split "
                "selects nothing.",
            )
        require(
            len(self.objectives) <= 1 or self.pruner is Pruner.none,
            f"hydra.sweeper.pruner={self.pruner.name} compares runs by one metric, and hydra.sweeper.objectives has "
            f"{len(self.objectives)}: use hydra.sweeper.pruner=none.",
        )


@dataclass(kw_only=True, slots=True)
class Config:
    """One run: what to train, on what, how, and where to write it down."""

    model: ModelConfig = MISSING
    peft: PeftConfig = MISSING
    data: DataConfig = MISSING
    task: TaskConfig = MISSING
    optim: OptimConfig = MISSING
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 42
    baseline: bool | None = None
    plots: bool | None = None
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        """Check the seed, and what a task without a head cannot do."""
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be at least 0 and below 2**32.")
        if isinstance(self.task, CausalLM):
            self._check_answering(self.task)
        if self.trainer.strategy is Strategy.fsdp:
            self._check_sharding()
        require(
            self.trainer.max_tokens is None or self.data.sampling is Sampling.natural,
            f"trainer.max_tokens={self.trainer.max_tokens} needs as many tokens in every epoch, and data.sampling="
            f"{self.data.sampling.name} draws rows anew: use trainer.batch_size, or data.sampling=natural.",
        )

    def _check_sharding(self) -> None:
        require(
            self.peft.quantization is Quantization.none,
            f"trainer=fsdp shards float weights, and peft.quantization={self.peft.quantization.name} packs them: use "
            "trainer=ddp, or peft=lora.",
        )
        require(
            self.trainer.precision is not Precision.fp16,
            "trainer=fsdp cannot scale the loss of trainer.precision=fp16: use bf16 or fp32.",
        )
        require(
            self.optim.name in (OptimizerName.adamw, OptimizerName.sgd),
            f"optim={self.optim.name.name} does not know shards: with trainer=fsdp use optim=adamw or optim=sgd.",
        )

    def _check_answering(self, task: CausalLM) -> None:
        require(
            not isinstance(self.peft, HeadOnly),
            "peft=head trains a classification head, and task=causal_lm has none: use peft=lora, or task=seq_cls.",
        )
        require(
            self.optim.head_lr is None,
            f"optim.head_lr={self.optim.head_lr} is the rate of a classification head, and task=causal_lm has none: "
            "leave it null.",
        )
        require(
            task.shots == 0 or isinstance(self.peft, Untuned) or self.baseline is not False,
            f"task.shots={task.shots} is for the prompt of the untuned base: use peft=none, or baseline=true to see it "
            "beside the tuned model.",
        )
        names = self.data.class_names()
        given = task.label_words
        if names is not None and given is not None:
            require(
                set(given) == set(names) if isinstance(given, dict) else len(given) == len(names),
                f"task.label_words={given} must give one word to each of the labels {', '.join(names)}.",
            )


def check_measure(metric: str, confidence: float = 0.95, resamples: int = 2000) -> None:
    """Refuse a metric that there is not, an impossible confidence, and too few resamples."""
    require(metric in METRICS, f"metric={metric} must be one of {', '.join(METRICS)}.")
    require(0 < confidence < 1, f"confidence={confidence} must be above 0 and below 1.")
    _at_least("resamples", resamples, 100)


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """`python -m sentexp compare`: which runs, by what, how surely.

    At most one of `sweep` (the MLflow run of a sweep, or its name), `runs` (ids), `experiment_name` and `filter`
    (MLflow's own, over the runs of `tracking.experiment`) is given; the latest sweep is the default. `base` is what
    differences are taken to: a baseline's name, a run's name or id; null is the untuned base, else the strongest that
    trains no adapter. `by` is a slice column. `rows` are shown of each kind when two runs are compared. `output` is a
    folder.
    """

    tracking: TrackingConfig = MISSING
    sweep: str | None = None
    runs: list[str] | None = None
    experiment_name: str | None = None
    filter: str | None = None
    metric: str = "accuracy"
    split: EvaluatedSplit = EvaluatedSplit.test
    base: str | None = None
    by: str | None = None
    rows: int = 10
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    output: str = "comparison"

    def __post_init__(self) -> None:
        """Check that one thing is compared, names and ranges."""
        given = [name for name in ("sweep", "runs", "experiment_name", "filter") if getattr(self, name) is not None]
        require(len(given) < 2, f"{' and '.join(given)} both say what to compare: give one of them.")  # noqa: PLR2004
        require(self.runs is None or len(self.runs) > 0, "runs=[] names no run: give ids, as in runs=[1a2b3c,4d5e6f].")
        check_measure(self.metric, self.confidence, self.resamples)
        _at_least("rows", self.rows, 1)
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be at least 0 and below 2**32.")
        require(
            self.tracking.backend is not TrackingBackend.none,
            "compare reads what MLflow holds, so tracking=none has nothing to compare: leave it out.",
        )


class TableFormat(Enum):
    """How a table is written that has no name to tell it: the formats of standard input and output."""

    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"


@dataclass(kw_only=True, slots=True)
class FinishedRun:
    """What every verb that uses a finished run is told: which run, and where its parts are.

    `run` is an identity or an MLflow run id, or the beginning of one, `best`, the path of a run's folder or of its
    folder of weights, or a registered model (`models:/name@alias`); `base` says where its base model is now, if it has
    moved. `output_dir` is where runs have their folders.
    """

    tracking: TrackingConfig = MISSING
    run: str | None = None
    base: str | None = None
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        """Check that a run is named."""
        require(
            bool(self.run),
            f"{self.verb} needs a finished run: give run=<identity or MLflow run id> (python -m sentexp runs lists "
            "them), run=best, or run=<a run's folder>.",
        )

    @property
    def verb(self) -> str:
        """The verb whose configuration this is."""
        return type(self).__name__.removesuffix("Config").lower()

    @property
    def wanted(self) -> str:
        """The run, which is known to be named."""
        assert self.run is not None
        return self.run


@dataclass(kw_only=True, slots=True)
class ReadingRun(FinishedRun):
    """What every verb that reads texts with a finished run is told besides: tokens of a batch, and the device."""

    max_tokens: int = 4096
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        """Check ranges."""
        FinishedRun.__post_init__(self)
        _at_least("max_tokens", self.max_tokens, 1)
        require(self.accelerator in ("auto", "cpu", "gpu"), f"accelerator={self.accelerator} must be auto, cpu or gpu.")


@dataclass(kw_only=True, slots=True)
class PredictConfig(ReadingRun):
    """`python -m sentexp predict`: which texts, and where what the run says of them goes.

    `text` is the column of the texts; null is that of the run's own data, else `text`, else the only column of texts.
    `prefix` stands before the names of the columns that are added. `format` is that of standard input and output.
    """

    input: str | None = None
    output: str | None = None
    overwrite: bool = False
    text: str | None = None
    prefix: str = ""
    calibrated: bool = False
    format: TableFormat | None = None
    encoding: str | None = None
    delimiter: str | None = None
    chunk_rows: int = 4096

    def __post_init__(self) -> None:
        """Check the reading of text files."""
        ReadingRun.__post_init__(self)
        _at_least("chunk_rows", self.chunk_rows, 1)
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise UserError(
                    f"encoding={self.encoding} is no encoding that Python knows: utf-8, latin-1, cp1252 and utf-16 are "
                    "usual."
                ) from None
        if self.delimiter == "\\t":
            self.delimiter = "\t"
        require(
            self.delimiter is None or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n'),
            f"delimiter={self.delimiter!r} must be one character such as ; or \\t.",
        )


class EvaluatedRows(Enum):
    """Which rows of a data set a finished run is evaluated on: those of a split, or all of them."""

    validation = "validation"
    test = "test"
    all = "all"


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(ReadingRun):
    """`python -m sentexp evaluate`: a finished run on other data.

    `split` are the rows: a split of the data as a run would have it, or all of them. Texts are cut as in the run, so
    `data.max_length` does not count.
    """

    data: DataConfig | None = None
    split: EvaluatedRows = EvaluatedRows.test

    def __post_init__(self) -> None:
        """Check that data are named."""
        ReadingRun.__post_init__(self)
        require(
            self.data is not None,
            "evaluate needs a data set: give data=<one of the group data>, such as data=csv data.path=reviews.csv.",
        )

    @property
    def dataset(self) -> DataConfig:
        """The data set, which is known to be there."""
        assert self.data is not None
        return self.data


class ExportFormat(Enum):
    """What a finished run is written as; see `sentexp.export.exporters`."""

    peft = "peft"
    merged = "merged"
    onnx = "onnx"
    gguf = "gguf"
    safetensors = "safetensors"


class ExportType(Enum):
    """The numbers that merged weights are written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True, slots=True)
class ExportConfig(FinishedRun):
    """`python -m sentexp export`: a finished run for other programs.

    `format` is one of `ExportFormat`, `dtype` that of merged weights, `output` the folder; null is
    `exports/<identity>-<format>`.
    """

    format: ExportFormat | None = None
    dtype: ExportType = ExportType.float32
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check that a format is named, and that it has such numbers."""
        FinishedRun.__post_init__(self)
        formats = ", ".join(one.name for one in ExportFormat)
        require(self.format is not None, f"export needs a format: give format=<one of {formats}>.")
        plain = self.format in (ExportFormat.peft, ExportFormat.onnx)
        require(
            not plain or self.dtype is ExportType.float32,
            f"dtype={self.dtype.name} is for merged weights: format=peft keeps the adapter as it was trained, and "
            "format=onnx is written in float32; leave it out.",
        )


@dataclass(kw_only=True, slots=True)
class RegisterConfig(FinishedRun):
    """`python -m sentexp register`: a finished run as a version of a registered MLflow model.

    `name` is that of the model. The version gets the `alias` if it is better than the version that has it: by more
    than noise in `metric` on the same rows of `split`, or with `force`. `carry_base` puts the base model's weights in.
    """

    name: str | None = None
    alias: str = "champion"
    metric: str = "accuracy"
    split: EvaluatedSplit = EvaluatedSplit.validation
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    force: bool = False
    carry_base: bool = False

    def __post_init__(self) -> None:
        """Check names and ranges."""
        FinishedRun.__post_init__(self)
        require(bool(self.name), "register needs the name of a model: give name=<a name>, such as name=reviews.")
        require(
            self.tracking.backend is not TrackingBackend.none,
            "register writes to MLflow's registry, and tracking=none has none: leave it out.",
        )
        check_measure(self.metric, self.confidence, self.resamples)


@dataclass(kw_only=True, slots=True)
class ServeConfig(ReadingRun):
    """`python -m sentexp serve`: a finished run behind MLflow's scoring server.

    `host` is loopback unless it is named; `max_bytes` is the largest request, `max_rows` its most texts.
    """

    host: str = "127.0.0.1"
    port: int = 5001
    max_bytes: int = 1 << 20
    max_rows: int = 1024

    def __post_init__(self) -> None:
        """Check ranges."""
        ReadingRun.__post_init__(self)
        require(0 <= self.port < 1 << 16, f"port={self.port} must be from 1 to 65535, or 0 for any that is free.")
        _at_least("max_bytes", self.max_bytes, 1)
        _at_least("max_rows", self.max_rows, 1)


BOOKKEEPING = (
    "tracking",
    "output_dir",
    "baseline",
    "plots",
    "sweep",
    "trainer.progress_bar",
    "trainer.log_every_n_steps",
    "trainer.save_steps",
    "trainer.strategy",
    "trainer.padding_free",
    "trainer.compile",
)
"""Keys that change where and how often a run is written down, or who computes it, never what it computes."""


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by dotted key, enums as their names."""
    leaves: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            leaves |= flatten(value, key + ".")
        elif isinstance(value, dict) and any(is_dataclass(part) for part in value.values()):
            for name, part in value.items():
                leaves |= flatten(part, f"{key}.{name}.")
        else:
            leaves[key] = value.name if isinstance(value, Enum) else value
    return leaves


def method_name(peft: PeftConfig) -> str:
    """Return the usual name of a way of training: none, head, full, lora, qlora, dora, qdora or ia3."""
    match peft:
        case Lora():
            four_bit = peft.quantization in (Quantization.nf4, Quantization.fp4)
            return ("q" if four_bit else "") + ("dora" if peft.use_dora else "lora")
        case IA3():
            return "ia3"
        case FullFineTuning():
            return "full"
        case HeadOnly():
            return "head"
    return "none"


def task_name(task: TaskConfig) -> str:
    """Return the name of a task: seq_cls or causal_lm."""
    return "causal_lm" if isinstance(task, CausalLM) else "seq_cls"


def conf_dir() -> Path:
    """Return the absolute folder of the config groups: inside an installed wheel, else in the checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


@functools.cache
def register_schemas() -> None:
    """Register, once, the root schema and the schemas of the polymorphic groups with hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="schema_compare", node=CompareConfig)
    store.store(name="schema_predict", node=PredictConfig)
    store.store(name="schema_evaluate", node=EvaluateConfig)
    store.store(name="schema_export", node=ExportConfig)
    store.store(name="schema_register", node=RegisterConfig)
    store.store(name="schema_serve", node=ServeConfig)
    polymorphic: dict[str, dict[str, type]] = {
        "peft": {"none": Untuned, "head": HeadOnly, "full": FullFineTuning, "lora": Lora, "ia3": IA3},
        "data": {"table": TableData, "phrasebank": PhraseBank, "multilingual": Multilingual, "rated": RatedTexts},
        "task": {"seq_cls": SequenceClassification, "causal_lm": CausalLM},
    }
    for group, kinds in polymorphic.items():
        for name, node in kinds.items():
            store.store(group=f"schema/{group}", name=name, node=node)
    store.store(
        group="hydra/sweeper", name="grid", node={"_target_": "hydra_plugins.sentexp.GridSweeper", "params": None}
    )
    store.store(group="hydra/sweeper", name="optuna", node=SearchConfig)
    store.store(
        group="hydra/launcher", name="fused", node={"_target_": "hydra_plugins.sentexp.FusedLauncher", "max_runs": 16}
    )
    one_by_one = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    store.store(group="hydra/launcher", name="sequential", node={"_target_": one_by_one})


def load_config(*overrides: str) -> Config:
    """Return the configuration that the command line would compose from these overrides; for notebooks and tests.

    Raises:
        UserError: a value that is out of range.
        hydra.errors.HydraException: an override that does not compose.
    """
    from hydra import compose, initialize_config_dir

    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


def _require_text_slot(key: str, template: str) -> None:
    require(template.count("{text}") == 1, f"{key}={template!r} must hold {{text}} exactly once.")


def _require_placeholders(key: str, text: str, *legal: str) -> None:
    unknown = [name for name in re.findall(r"\{(\w+)\}", text) if name not in legal]
    told = " and ".join(f"{{{name}}}" for name in legal)
    require(
        not unknown, f"{key}={text!r} holds {{{''.join(unknown[:1])}}}, which stands for nothing there: use {told}."
    )


def _label_words(given: Any) -> list[str] | dict[str, str] | None:
    """Return the words, and the labels of a mapping, as strings; None stays None."""
    words = list(given.values()) if isinstance(given, dict) else given
    if words is None:
        return None
    require(
        isinstance(words, list) and not any(isinstance(word, bool) for word in words),
        f"task.label_words={given} must be texts, one for each label: a word such as true is quoted, as in "
        "\"task.label_words=['true','false']\".",
    )
    texts = [str(word).strip() for word in words]
    require(
        all(texts) and len(set(texts)) == len(texts),
        f"task.label_words={given} must be a different word for each label, as a list in the order of the labels or a "
        "mapping such as {negative: bad, positive: good}; null is the labels themselves.",
    )
    return dict(zip(map(str, given), texts, strict=True)) if isinstance(given, dict) else texts


def _at_least(key: str, value: int, least: int) -> None:
    require(value >= least, f"{key}={value} must be {least} or more.")


def _names(key: str, value: object, legal: str) -> list[str]:
    """Return a list of names; a single name counts as a list of one."""
    names = [value] if isinstance(value, str) and value else value
    if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
        return list(dict.fromkeys(names))
    raise UserError(f"{key}={value} must be {legal}.")


def _labels(given: Any) -> list[str] | dict[str, str | None] | None:
    """Return class names, or a mapping from written labels to class names, as strings; None stays None."""
    if given is None:
        return None
    require(
        isinstance(given, list | dict),
        f"data.labels={given} must be a list of classes, a mapping such as {{1: negative, 5: positive}}, or null for "
        "the values of the label column.",
    )
    if isinstance(given, dict):
        labels: Any = {str(value): None if name is None else str(name) for value, name in given.items()}
        names = list(dict.fromkeys(name for name in labels.values() if name is not None))
    else:
        labels = names = [str(name) for name in given]
    require(
        len(names) > 1 and len(set(names)) == len(names),
        f"data.labels={given} must name at least two different classes.",
    )
    for name in names:
        require_class_name(name)
    require(
        len({name.casefold() for name in names}) == len(names),
        f"data.labels={given} must differ in more than upper and lower case.",
    )
    return labels  # type: ignore[no-any-return]


def require_class_name(name: str) -> None:
    """Refuse a class whose metrics MLflow could not name."""
    require(
        re.fullmatch(r"[\w .:/-]+", name) is not None,
        f"data.labels holds {name!r}: MLflow takes letters, digits, spaces and _ - . : / in a name; map it to another "
        "one with `labels: {<value>: <class>}` in a file of your own, mine/data/<name>.yaml, and --config-dir mine.",
    )


def _target_modules(key: str, value: object) -> str | list[str]:
    """Return a regular expression, `all-linear`, or a list of names; a single plain name counts as a list of one."""
    if isinstance(value, str) and value:
        if value == "all-linear":
            return value
        if re.fullmatch(r"[\w.]+", value):
            return [value]
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(f"{key}={value!r} is not a regular expression: {error}.") from None
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return list(value)
    raise UserError(
        f"{key}={value!r} must be all-linear, a list of module names such as [q_proj,v_proj], or a regular expression."
    )
