"""`conf/config.yaml`: one run, and the rules between its groups."""

from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

from sentexp.config.checks import AUTO, check_ranges, seed_number
from sentexp.config.data import DataConfig, Sampling, TableData
from sentexp.config.devices import check_devices
from sentexp.config.lora import READING_ROWS, Lora
from sentexp.config.metric_names import ORDERED_METRICS
from sentexp.config.model import ModelConfig
from sentexp.config.optim import OptimConfig, OptimizerName
from sentexp.config.peft import (
    VIRTUAL,
    HeadOnly,
    PeftConfig,
    PeftMethod,
    Quantization,
    Untuned,
)
from sentexp.config.peft_methods import method_name
from sentexp.config.sweep import SweepConfig
from sentexp.config.target_kind import TargetKind, measured_kind
from sentexp.config.task import CausalLM, HeadLoss, TaskConfig, target_kind, task_name
from sentexp.config.tracking import TrackingConfig
from sentexp.config.trainer import Average, Precision, Strategy, TrainerConfig
from sentexp.errors import require

LOSSES = {TargetKind.scores: "regression", TargetKind.label_sets: "multi_label"}
"""The `task.loss` that learns something else than classes."""


@dataclass(kw_only=True, slots=True)
class Config:
    """One run: what to train, on what, how, and where to record it."""

    model: ModelConfig
    peft: PeftConfig
    data: DataConfig
    task: TaskConfig
    optim: OptimConfig
    trainer: TrainerConfig
    tracking: TrackingConfig
    sweep: SweepConfig
    seed: int = seed_number()
    baseline: bool | None
    plots: bool | None
    output_dir: str

    def __post_init__(self) -> None:
        """Resolve what the task decides; check the seed, and what a task without a head cannot do."""
        check_ranges(self)
        if isinstance(self.task, CausalLM):
            self._check_answering(self.task)
        require(
            self.optim.lora_plus_ratio is None or isinstance(self.peft, Lora),
            f"optim.lora_plus_ratio={self.optim.lora_plus_ratio} is for the matrices B of LoRA, which peft="
            f"{method_name(self.peft)} does not have: leave it null, or use peft=lora.",
        )
        require(
            self.data.ordered or getattr(self.task, "loss", None) is not HeadLoss.ordinal,
            "task.loss=ordinal learns classes in their order: set data.ordered=true.",
        )
        self._check_target()
        if self.trainer.strategy is Strategy.fsdp:
            self._check_sharding()
        self._check_recipes()
        check_devices(self.trainer, self.optim.name, self.peft, self.task)
        require(
            not self.trainer.compile or isinstance(self.peft, Lora | Untuned),
            "trainer.compile=true compiles layers that train LoRA, QLoRA or DoRA, and peft="
            f"{method_name(self.peft)} is none of them: leave it false.",
        )
        require(
            not self.trainer.compile or self.peft.quantization is not Quantization.hqq4,
            "trainer.compile=true cannot compile HQQ's layers: leave it false, or use another peft.quantization.",
        )
        require(
            self.trainer.max_tokens is None or self.data.sampling is Sampling.natural,
            f"trainer.max_tokens={self.trainer.max_tokens} needs as many tokens in every epoch, and data.sampling="
            f"{self.data.sampling.name} draws rows anew: use trainer.batch_size, or data.sampling=natural.",
        )

    @property
    def title(self) -> str:
        """What a single run is called: by its model, method, data and task."""
        return "-".join((self.model.title, method_name(self.peft), self.data.title, task_name(self.task)))

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics of every split."""
        measured = target_kind(self.task).measured
        return (*measured, *ORDERED_METRICS) if self.data.ordered else measured

    def _check_target(self) -> None:
        """Choose the monitor, where it is open, and refuse what does not go with classes, scores or sets of labels."""
        kind = target_kind(self.task)
        if self.trainer.monitor == AUTO:
            self.trainer = replace(self.trainer, monitor=f"validation/{kind.headline}")
        if kind is not TargetKind.classes:
            self._check_no_classes(kind)
        monitored = self.trainer.monitor.removeprefix("validation/")
        measures = measured_kind(monitored)
        if kind is not TargetKind.classes:
            advice = f", and task.loss={LOSSES[kind]} learns {kind.value}: use "
            advice += ", ".join(f"validation/{name}" for name in self.measured)
        elif measures is TargetKind.classes:
            advice = " that are ordered: set data.ordered=true"
        else:
            advice = f": set task.loss={LOSSES[measures]}"
        require(
            monitored in self.measured, f"trainer.monitor={self.trainer.monitor} measures {measures.value}{advice}."
        )

    def _check_no_classes(self, kind: TargetKind) -> None:
        """Scores and sets of labels are no classes: what weighs, draws, orders or counts these has no meaning."""
        of_classes = {
            "task.focal_gamma": self.task.focal_gamma,
            "task.label_smoothing": self.task.label_smoothing,
            "task.r_drop": self.task.r_drop,
            "data.class_weights": self.data.class_weights,
            "data.ordered": self.data.ordered,
            "data.sampling": self.data.sampling.name if self.data.sampling is Sampling.balanced_labels else None,
        }
        instead = {key: "0" for key in of_classes if key.startswith("task.")}
        instead |= {"data.ordered": "false", "data.sampling": "natural"}
        wrong = next((key for key, value in of_classes.items() if value), "")
        require(
            not wrong,
            f"{wrong}={of_classes.get(wrong)} is for classes, and task.loss={LOSSES[kind]} learns {kind.value}: set "
            f"{wrong}={instead.get(wrong, 'null')}.",
        )
        require(
            kind is not TargetKind.label_sets or isinstance(self.data, TableData),
            f"task.loss=multi_label reads the labels of a table, and data={self.data.name} is a collection with one "
            "label for each text: use data=csv, or task.loss=cross_entropy.",
        )

    def _check_sharding(self) -> None:
        require(
            self.peft.quantization is Quantization.none,
            f"trainer=fsdp shards float weights, and peft.quantization={self.peft.quantization.name} packs them: use "
            "trainer=ddp, or peft=lora.",
        )
        require(
            not isinstance(self.peft, PeftMethod),
            f"trainer=fsdp takes LoRA, DoRA, IA3 and whole models, not peft={method_name(self.peft)}: use trainer=ddp.",
        )
        if isinstance(self.peft, Lora):
            require(
                not self.peft.modules_to_save and self.peft.init not in READING_ROWS,
                "trainer=fsdp takes neither peft.modules_to_save nor a peft.init that looks at training rows "
                f"({', '.join(READING_ROWS)}), which have the whole model at once: use trainer=ddp.",
            )
        require(
            self.trainer.precision is not Precision.fp16,
            "trainer=fsdp cannot scale the loss of trainer.precision=fp16: use bf16 or fp32.",
        )
        require(
            self.optim.name in (OptimizerName.adamw, OptimizerName.sgd),
            f"optim={self.optim.name.name} does not support shards: with trainer=fsdp use optim=adamw or optim=sgd.",
        )

    def _check_recipes(self) -> None:
        average, noise = self.trainer.average, self.task.neftune_alpha
        require(
            noise == 0 or not isinstance(self.peft, HeadOnly),
            f"task.neftune_alpha={noise} makes the embeddings of a text new in each epoch, and peft=head computes the "
            "features of a text once: use another peft, or leave it 0.",
        )
        require(
            noise == 0 or not (isinstance(self.peft, PeftMethod) and self.peft.type in VIRTUAL),
            f"task.neftune_alpha={noise} puts noise on the embeddings of a text, and those of virtual tokens are "
            "trained: leave it 0, or use peft=lora.",
        )
        require(
            average is Average.none or self.optim.name is not OptimizerName.schedule_free,
            f"trainer.average={average.name} averages weights, and optim=schedule_free does so already: leave "
            "trainer.average=none.",
        )
        require(
            average is Average.none or self.trainer.strategy is not Strategy.fsdp,
            f"trainer.average={average.name} keeps whole weights, and trainer=fsdp has shards: use trainer=ddp, or "
            "trainer.average=none.",
        )
        is_adalora = isinstance(self.peft, PeftMethod) and self.peft.type == "ADALORA"
        averages = average is not Average.none or self.optim.name is OptimizerName.schedule_free
        require(
            not is_adalora or not (averages or self.trainer.unfreeze is not None),
            "peft=adalora chooses ranks by all gradients, and means of weights have ranks that it took away: leave "
            "trainer.average=none, trainer.unfreeze=null and optim=adamw, or use peft=lora.",
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
    "trainer.cuda_graphs",
    "model.keep_dequantized",
)
"""Keys that change where and how often a run is recorded, or which processes compute it, never what it computes."""


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
