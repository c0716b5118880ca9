"""Every structured configuration: the types behind `conf/`, their ranges and the rules between their fields.

Standard library, omegaconf and hydra's ConfigStore only, so that a wrong key or value is refused before torch is
imported. The group options in `conf/<group>/<option>.yaml` give the values; this file gives types and meaning.
"""

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

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


@dataclass(kw_only=True, slots=True)
class Splits:
    """The source's name for each split; null means: carved from train by hash of the normalised text."""

    train: str = "train"
    validation: str | None = None
    test: str | None = None

    def __post_init__(self) -> None:
        """One split of the source is one split of the run (law 10)."""
        named = [name for name in (self.train, self.validation, self.test) if name is not None]
        require(
            len(set(named)) == len(named),
            f"data.splits.train={self.train}, data.splits.validation={self.validation} and data.splits.test="
            f"{self.test} must be three different splits of the source; null carves one from train.",
        )


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The examples: `path` if given (folder, file or hub id), else the installed `package`."""

    name: str
    labels: list[str]
    text: str = "text"
    label: str = "label"
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    package: PackageTable | None = None
    splits: Splits = field(default_factory=Splits)
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    train_subset: float | None = None
    validation_subset: float | None = None
    subset_seed: int = 0
    max_length: int = 256

    def __post_init__(self) -> None:
        """Check labels, fractions and subsets."""
        require(
            self.path is not None or self.package is not None,
            f"data.path is empty and data={self.name} has no installed package: pass data.path=<folder, file or hub "
            "id>.",
        )
        require(
            len(self.labels) > 1 and len(set(self.labels)) == len(self.labels),
            f"data.labels={self.labels} must name at least two different classes.",
        )
        for label in self.labels:
            require(
                re.fullmatch(r"[\w .:/-]+", label) is not None,
                f"data.labels holds {label!r}: MLflow takes letters, digits, spaces and _ - . : / in a name.",
            )
        require(
            len({label.casefold() for label in self.labels}) == len(self.labels),
            f"data.labels={self.labels} must differ in more than upper and lower case.",
        )
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
        _at_least("data.max_length", self.max_length, 1)


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """What the backbone is asked to do. `template` frames each text; `{text}` stands for it."""

    template: str = "{text}"

    def __post_init__(self) -> None:
        """The text must appear once."""
        require(
            self.template.count("{text}") == 1,
            f"task.template={self.template!r} must hold {{text}} exactly once.",
        )


@dataclass(kw_only=True, slots=True)
class SequenceClassification(TaskConfig):
    """`task=seq_cls`: a linear head over the last token of the framed text (PEFT's `SEQ_CLS`)."""

    head_init: HeadInit = HeadInit.normal


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

    `eval_steps` and `save_steps` count optimizer steps; an `eval_steps` below 1 is a fraction of an epoch, and null
    evaluates at the end of each epoch only.
    """

    max_epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 16
    eval_batch_size: int = 32
    accumulate_grad_batches: int = 1
    precision: Precision = Precision.auto
    gradient_clip_val: float | None = 1.0
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    eval_steps: float | None = None
    save_steps: int = 25
    log_every_n_steps: int = 5
    monitor: str = "validation/accuracy"
    early_stopping_patience: int | None = None
    accelerator: str = "auto"
    progress_bar: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_epochs", "batch_size", "eval_batch_size", "accumulate_grad_batches", "save_steps"):
            _at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("max_steps", "log_every_n_steps", "early_stopping_patience"):
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
        legal = [f"validation/{name}" for name in METRICS]
        require(self.monitor in legal, f"trainer.monitor={self.monitor} must be one of {', '.join(legal)}.")
        require(
            self.accelerator in ("auto", "cpu", "gpu"),
            f"trainer.accelerator={self.accelerator} must be auto, cpu or gpu.",
        )


METRICS = ("loss", "accuracy", "auroc_macro", "f1_macro", "precision_macro", "recall_macro")
"""The metrics of every split; the classes that a split does not hold stay out of the macro averages."""


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
class Config:
    """One run: what to train, on what, how, and where to write it down."""

    model: ModelConfig = MISSING
    peft: PeftConfig = MISSING
    data: DataConfig = MISSING
    task: TaskConfig = MISSING
    optim: OptimConfig = MISSING
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    seed: int = 42
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        """Check the seed."""
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be at least 0 and below 2**32.")


BOOKKEEPING = ("tracking", "output_dir", "trainer.progress_bar", "trainer.log_every_n_steps", "trainer.save_steps")
"""Keys that change where and how often a run is written down, never what it computes."""


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by dotted key, enums as their names."""
    leaves: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            leaves |= flatten(value, key + ".")
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


def conf_dir() -> Path:
    """Return the absolute folder of the config groups: inside an installed wheel, else in the checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def register_schemas() -> None:
    """Register the root schema and the schemas of the polymorphic groups with hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    polymorphic: dict[str, dict[str, type]] = {
        "peft": {"none": Untuned, "head": HeadOnly, "full": FullFineTuning, "lora": Lora, "ia3": IA3},
        "task": {"seq_cls": SequenceClassification},
    }
    for group, kinds in polymorphic.items():
        for name, node in kinds.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def load_config(*overrides: str) -> Config:
    """Return the configuration that the command line would compose from these overrides; for notebooks and tests.

    Raises:
        UserError: a value that is out of range.
        hydra.errors.HydraException: an override that does not compose.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


def _at_least(key: str, value: int, least: int) -> None:
    require(value >= least, f"{key}={value} must be {least} or more.")


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
