"""What benchmarks/training.py measures: ways of training and evaluating a model on the same rows, and the limit.

Each arm loads its model anew, trains on the rows of a round and evaluates others, in the loop that its users have. Its
first batch is given once more, before the others, to warm up: the clock starts at the end of that step and stops at the
end of the last one. So loading and setting up are left out, and what a loop does between its steps is not.
"""

import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import lightning as L  # noqa: N812 (the library's own abbreviation)
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from sentexp.config import CausalLM, Lora, Precision, Quantization
from sentexp.data.batch import pad
from sentexp.data.batching import MEGABATCH, RowBatches
from sentexp.data.datamodule import DataModule
from sentexp.data.packing import Packed
from sentexp.models.encoders import encoder_of, pooling_of
from sentexp.models.loading import DTYPES
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.inputs import RunInputs
from sentexp.system.device import choose_precision
from sentexp.system.memory import peak_memory_gib, release_memory, reset_peak_memory
from sentexp.tracking.run_logger import RunLogger
from sentexp.training.module import ClassifierModule
from sentexp.training.trainer import build_trainer, run_batches

OURS, LIMIT = "sentexp", "frozen products alone"
RANK, ALPHA, RATE = 16, 32, 5e-4
TRIED = (16, 32, 64)
"""Batch sizes that an expert tries."""
ALIKE = max(TRIED)
"""Rows of like length that are drawn together, as length grouping would put them into a batch."""

Order = list[tuple[list[int], int]]
"""Batches of sentexp: row numbers, and the rows of the optimizer step."""


class Rows(NamedTuple):
    """The rows of a round, by their numbers in the training and the test split."""

    number: int
    train: list[int]
    test: list[int]


class Turn(NamedTuple):
    """What an arm took for the rows of a round; `test` is None where it does not evaluate.

    `peak_gib` is that of loading and training: on a GPU that of its allocator, else of the whole process.
    """

    train: float
    test: float | None
    peak_gib: float


class Arm(Protocol):
    """A way of training and evaluating."""

    def turn(self, rows: Rows) -> Turn:
        """Load a model, train and evaluate it on these rows."""


@dataclass(kw_only=True)
class Clock:
    """Times the steps of a loop, the first left out; a GPU is waited for at both ends only."""

    steps: int
    device: torch.device
    ticks: int = 0
    _began: float = math.nan
    _ended: float = math.nan

    def tick(self) -> None:
        """Note the end of a step."""
        self.ticks += 1
        if self.ticks == 1:
            self._began = self._now()
        if self.ticks == self.steps:
            self._ended = self._now()

    @property
    def seconds(self) -> float:
        """How long all steps but the first took."""
        if self.ticks != self.steps:
            raise RuntimeError(f"the loop made {self.ticks} steps instead of {self.steps}")
        return self._ended - self._began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class Ground:
    """What all arms stand on: the inputs of a run of sentexp. An optimizer step has `batch_size` rows."""

    inputs: RunInputs

    @property
    def materials(self) -> RunInputs:
        """The inputs, by the name that scripts outside this repository read them by."""
        return self.inputs

    @property
    def batch_size(self) -> int:
        """Rows of an optimizer step."""
        return self.inputs.config.trainer.batch_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.inputs.device

    @property
    def answers(self) -> bool:
        """Whether the task is `causal_lm`."""
        return isinstance(self.inputs.config.task, CausalLM)

    @property
    def four_bit(self) -> bool:
        """Whether the frozen weights are stored in 4 bits."""
        return self.inputs.config.peft.quantization is not Quantization.none

    def draw(self, number: int, train: int, test: int) -> Rows:
        """Return the rows of a round."""
        tokens = self.inputs.tokens
        drawn = (spread(tokens[name].lengths, count, number) for name, count in (("train", train), ("test", test)))
        return Rows(number, *drawn)

    def examples(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return training rows as transformers takes them, with labels that leave a prompt out of the loss."""
        tokens, prompt = self.inputs.tokens["train"], self.inputs.prompt
        found = []
        for ids, label in zip(tokens.ids(numbers), tokens.labels[list(numbers)].tolist(), strict=True):
            answer = [*prompt.answers[label], *prompt.end] if self.answers else []
            labels = [-100] * len(ids) + answer if self.answers else label
            found.append({"input_ids": ids + answer, "labels": labels})
        return found

    def tokens(self, rows: Rows) -> tuple[int, int]:
        """Return how many tokens the training rows, answers included, and the test rows have."""
        train = sum(len(example["input_ids"]) for example in self.examples(rows.train))
        return train, int(self.inputs.tokens["test"].lengths[rows.test].sum())

    def order(self, stage: str, rows: Rows) -> Order:
        """Return the batches of sentexp over the rows of a stage, the first twice."""
        trainer = self.inputs.config.trainer
        if stage == "train":
            lengths = self.inputs.tokens["train"].lengths[rows.train]
            batches = RowBatches(lengths, self.batch_size, 1, rows.number, trainer.group_by_length).batches()
            found = [([rows.train[row] for row in batch], size) for batch, size in batches]
        else:
            lengths = self.inputs.tokens["test"].lengths
            ordered, size = sorted(rows.test, key=lambda row: lengths[row]), trainer.eval_batch_size
            parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
            found = [(part, len(part)) for part in parts]
        return [found[0], *found]


def spread(lengths: Any, count: int, seed: int) -> list[int]:
    """Return rows of all lengths, in blocks of like length, so that few rows are batched as those of an epoch are.

    Rows are shuffled and a stretch of as many as length grouping sorts is sorted; blocks are taken at even distances.

    Args:
        lengths: tokens of each row of a split, shape (rows,).
        count: how many are wanted.
        seed: of the order, and of where the first block lies.
    """
    if count > len(lengths):
        raise SystemExit(f"The split has {len(lengths):,} rows, fewer than the {count:,} that are wanted of it.")
    rng, size = np.random.default_rng(seed), math.gcd(count, ALIKE)
    blocks = min(max(MEGABATCH, count // size), len(lengths) // size)
    rows = rng.permutation(len(lengths))[: blocks * size]
    rows = rows[lengths[rows].argsort(kind="stable")].reshape(blocks, size)
    chosen = (np.arange(count // size) + rng.random()) * blocks / (count // size)
    return [int(row) for row in rows[chosen.astype(int)].flatten()]


class _LightningClock(L.Callback):
    """Tells a clock of Lightning's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.tick()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.clock.tick()


class _TrainerClock(TrainerCallback):  # type: ignore[misc] # untyped
    """Tells a clock of the steps of transformers' Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


@dataclass(kw_only=True)
class Sentexp:
    """sentexp's own path through Lightning, with padding or without."""

    ground: Ground
    padding_free: bool = True

    @cached_property
    def inputs(self) -> RunInputs:
        """Those of the ground, with padding or without."""
        config = self.ground.inputs.config
        trainer = replace(config.trainer, padding_free=self.padding_free)
        return replace(self.ground.inputs, config=replace(config, trainer=trainer))

    def turn(self, rows: Rows) -> Turn:
        """Load a model, train and evaluate it on these rows."""
        module, data = self.load()
        train = self.run("train", rows, module, data)
        peak = peak_memory_gib(self.ground.device)
        return Turn(train, self.run("test", rows, module, data), peak)

    def load(self) -> tuple[ClassifierModule, DataModule]:
        """Return a module and the data."""
        model, _ = build_model(self.inputs)
        return build_module(self.inputs, model), build_data(self.inputs)

    def run(self, stage: str, rows: Rows, module: ClassifierModule, data: DataModule, *watching: L.Callback) -> float:
        """Train or evaluate on the rows of a stage; return the seconds."""
        order, inputs = self.ground.order(stage, rows), self.inputs
        clock = Clock(steps=len(order), device=inputs.device)
        watching = _LightningClock(clock), *watching
        trainer = build_trainer(inputs.config.trainer, inputs.precision, inputs.device, RunLogger(), *watching)
        run_batches(trainer, module, data.loader(stage, order), "train" if stage == "train" else "validation")
        return clock.seconds


@dataclass(kw_only=True)
class HuggingFace:
    """transformers' Trainer with PEFT: as in their examples, or as an expert tunes it.

    The examples load float32 weights, shuffle the rows and pad them; with 4 bits they call
    `prepare_model_for_kbit_training`, which checkpoints gradients. An expert has weights and arithmetic in bfloat16
    where that is faster than float32, rows of like length together, no checkpointing, the batch size that is fastest,
    and asks for the last logits only where a language model is evaluated.
    """

    ground: Ground
    batch_size: int
    tuned: bool

    def turn(self, rows: Rows) -> Turn:
        """Load a model, train and evaluate it on these rows."""
        with tempfile.TemporaryDirectory() as folder:
            examples = self._ordered(self.ground.examples(rows.train), rows.number)
            collator = DataCollatorForSeq2Seq if self.ground.answers else DataCollatorWithPadding
            trainer = Trainer(
                model=get_peft_model(self._load(), lora(self.ground)),
                args=TrainingArguments(folder, bf16=self._halved, **_arguments(self.ground, self.batch_size)),
                train_dataset=Dataset.from_list(examples),
                data_collator=collator(self.ground.inputs.tokenizer),
            )
            seconds = _timed(trainer, trainer.train, len(examples))
            peak = peak_memory_gib(self.ground.device)
            return Turn(seconds, self._evaluate(trainer, rows), peak)

    @property
    def _halved(self) -> bool:
        return self.tuned and choose_precision(Precision.auto, self.ground.device) is Precision.bf16

    def _load(self) -> Any:
        model = load(self.ground, torch.bfloat16 if self._halved else torch.float32)
        if self.ground.four_bit and not self.tuned:
            return prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def _ordered(self, examples: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        """Return the rows in the order of transformers' sampler, the first batch twice."""
        generator = torch.Generator().manual_seed(seed)
        if self.tuned:  # as within a stretch of an epoch: the sampler itself cuts a short one into four
            order = grouped(examples, self.batch_size, generator)
        else:
            order = torch.randperm(len(examples), generator=generator).tolist()
        return [examples[row] for row in [*order[: self.batch_size], *order]]

    def _evaluate(self, trainer: Trainer, rows: Rows) -> float:
        """Return the seconds of a prediction; a language model's logits of the labels after each prompt are kept."""
        tokens = self.ground.inputs.tokens["test"]
        numbers = sorted(rows.test, key=lambda row: tokens.lengths[row]) if self.tuned else rows.test
        examples = [{"input_ids": ids} for ids in tokens.ids([*numbers[: self.batch_size], *numbers])]
        if self.ground.answers:
            trainer.data_collator = self._prompts
            first = [answer[0] for answer in self.ground.inputs.prompt.answers]
            trainer.preprocess_logits_for_metrics = lambda logits, _: logits[:, -1, first]
        predict = lambda: trainer.predict(Dataset.from_list(examples))  # noqa: E731
        return _timed(trainer, predict, len(examples))

    def _prompts(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return prompts padded on the left, so that each ends in the last column."""
        pad_id = self.ground.inputs.tokenizer.pad_token_id
        ids, mask = pad([example["input_ids"] for example in examples], pad_id, "left")
        only_last = {"logits_to_keep": 1} if self.tuned else {}
        return {"input_ids": ids, "attention_mask": mask, **only_last}


@dataclass(kw_only=True)
class Trl:
    """TRL's SFTTrainer on prompts and answers, in bfloat16, without its gradient checkpointing, which costs time only.

    Padded, its rows are grouped by length as well. Packed, a step is one sequence, just so long that the rows take as
    many steps as batches of `batch_size` do; without flash-attn, which TRL asks for, PyTorch's attention goes over all
    of it under a mask.
    """

    ground: Ground
    packing: bool

    def turn(self, rows: Rows) -> Turn:
        """Load a model and train it on these rows."""
        from trl import SFTConfig, SFTTrainer

        examples, size = self.ground.examples(rows.train), self.ground.batch_size
        if self.packing:
            data, size = self._packed(examples), 1
        else:
            order = grouped(examples, size, torch.Generator().manual_seed(rows.number))
            data = Dataset.from_list([examples[row] for row in [*order[:size], *order]])
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                folder,
                packing=self.packing,
                activation_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True},
                **_arguments(self.ground, size),
            )
            trainer = SFTTrainer(
                model=load(self.ground, torch.bfloat16),
                args=arguments,
                train_dataset=data,
                processing_class=self.ground.inputs.tokenizer,
                peft_config=lora(self.ground),
            )
            return Turn(_timed(trainer, trainer.train, len(data)), None, peak_memory_gib(self.ground.device))

    def _packed(self, examples: list[dict[str, Any]]) -> Dataset:
        """Return the rows as TRL packs them, the first sequence twice."""
        from trl import pack_dataset

        lengths, steps = [len(example["input_ids"]) for example in examples], len(examples) // self.ground.batch_size
        length = max(*lengths, math.ceil(sum(lengths) / steps))
        while len(packed := pack_dataset(Dataset.from_list(examples), length, "bfd")) > steps:
            length += max(lengths) // 4
        return packed.select([0, *range(len(packed))])


class Product(NamedTuple):
    """A product of so many tokens with a frozen weight, shape (outputs, inputs); `back`: its input has a gradient."""

    weight: Tensor
    tokens: int
    back: bool

    @property
    def flops(self) -> int:
        """Floating-point operations, forward and back."""
        return 2 * self.tokens * self.weight.numel() * (1 + self.back)


@dataclass(kw_only=True)
class Limit:
    """The products with frozen weights that no way of training can do without, and nothing else.

    They are those of sentexp's batches: x W^T, and in training dy W, of all linear layers of the backbone and, of a
    language model, of its output matrix, for each token that needs them: q, k and v stand in one matrix, and so do gate
    and up; in the last layer what follows attention is for the tokens that are read, and the input of the first layer
    has no gradient. The weights are random, in the arithmetic of sentexp's products.
    """

    ground: Ground

    def turn(self, rows: Rows) -> Turn:
        """Multiply what the training and the evaluation on these rows multiply."""
        weights = self._weights()
        train, test = (self._time(self.products(stage, rows, weights)) for stage in ("train", "test"))
        return Turn(train, test, peak_memory_gib(self.ground.device))

    def flops(self, stage: str, rows: Rows) -> int:
        """Return the floating-point operations of a stage, the first batch, which is there twice, once."""
        shapes = [torch.empty(shape, device="meta") for shape in self._shapes()]
        batches = self.products(stage, rows, shapes)
        return sum(product.flops for batch in batches[1:] for product in batch)

    def products(self, stage: str, rows: Rows, weights: list[Tensor]) -> list[list[Product]]:
        """Return the products of each batch of sentexp, in their order."""
        data = build_data(self.ground.inputs)
        found: list[list[Product]] = []
        for batch in data.loader(stage, self.ground.order(stage, rows)):
            packed = batch.texts
            if not isinstance(packed, Packed):
                raise TypeError("the limit is that of rows without padding, which this model cannot have")
            if stage == "test" and found:
                packed = packed.behind_prefix()
            found.append(self._products(packed, weights, stage == "train"))
        return found

    def _products(self, packed: Packed, weights: list[Tensor], training: bool) -> list[Product]:
        everywhere, last = len(packed.ids), 4 * self._config.num_hidden_layers - 4
        reads_first = encoder_of(self._config) is not None and pooling_of(self._config) == "first"
        read = packed.rows if reads_first else len(packed.read)
        return [
            Product(weight, everywhere if place <= last else read, training and place > 0)
            for place, weight in enumerate(weights)
        ]

    @cached_property
    def _config(self) -> Any:
        return AutoConfig.from_pretrained(self.ground.inputs.backbone.folder)

    def _shapes(self) -> list[tuple[int, int]]:
        """Return (outputs, inputs) of the four matrices of each layer, and of the output matrix."""
        config = self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        heads, pairs = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
        size = getattr(config, "head_dim", None) or hidden // heads
        up = inner if config.model_type == "bert" else 2 * inner
        layer = [((heads + 2 * pairs) * size, hidden), (hidden, heads * size), (up, hidden), (hidden, inner)]
        output = [(config.vocab_size, hidden)] if self.ground.answers else []
        return layer * config.num_hidden_layers + output

    def _weights(self) -> list[Tensor]:
        dtype = DTYPES[self.ground.inputs.precision]
        return [torch.randn(shape, dtype=dtype, device=self.ground.device) for shape in self._shapes()]

    def _time(self, batches: list[list[Product]]) -> float:
        """Return the seconds of all batches but the first, from operands to results that are there already.

        Each shape of a product comes once before, as a library may have to prepare itself for it.
        """
        most: dict[int, int] = {}
        for product in (product for batch in batches for product in batch):
            for width in product.weight.shape:
                most[width] = max(most.get(width, 0), product.tokens)
        like = {"dtype": batches[0][0].weight.dtype, "device": self.ground.device}
        given = {width: torch.randn(tokens, width, **like) for width, tokens in most.items()}
        result = {width: torch.empty(tokens, width, **like) for width, tokens in most.items()}
        different = {(*product.weight.shape, *product[1:]): product for batch in batches for product in batch}
        multiply(list(different.values()), given, result)
        clock = Clock(steps=len(batches), device=self.ground.device)
        for batch in batches:
            multiply(batch, given, result)
            clock.tick()
        return clock.seconds


def multiply(products: list[Product], given: dict[int, Tensor], result: dict[int, Tensor]) -> None:
    """Multiply forward and back, with operands and results by their width."""
    for weight, tokens, _ in products:
        outputs, inputs = weight.shape
        torch.mm(given[inputs][:tokens], weight.mT, out=result[outputs][:tokens])
    for weight, tokens, back in reversed(products):
        outputs, inputs = weight.shape
        if back:
            torch.mm(given[outputs][:tokens], weight, out=result[inputs][:tokens])


def arms(ground: Ground, rows: int) -> dict[str, Arm]:
    """Return all arms of a task by name, sentexp and the limit first; an expert's for each batch of up to `rows`."""
    found: dict[str, Arm] = {
        OURS: Sentexp(ground=ground),
        LIMIT: Limit(ground=ground),
        "sentexp, padded": Sentexp(ground=ground, padding_free=False),
        "Trainer + PEFT, fp32": HuggingFace(ground=ground, batch_size=ground.batch_size, tuned=False),
    }
    for size in TRIED:
        if size <= rows:
            found[tuned(size)] = HuggingFace(ground=ground, batch_size=size, tuned=True)
    if ground.answers and find_spec("trl"):
        found |= {"TRL": Trl(ground=ground, packing=False), "TRL, packed": Trl(ground=ground, packing=True)}
    return found


def tuned(size: int) -> str:
    """Return the name of the expert's arm with batches of so many rows."""
    return f"Trainer + PEFT, tuned (batch {size})"


def take(arm: Arm, rows: Rows, device: torch.device) -> Turn:
    """Let an arm have its turn, its peak of memory counted anew and all of it given back."""
    reset_peak_memory(device)
    try:
        return arm.turn(rows)
    finally:
        release_memory()


def load(ground: Ground, dtype: torch.dtype) -> Any:
    """Return transformers' model of the task, in 4 bits where the ground says so."""
    inputs = ground.inputs
    options: dict[str, Any] = {} if ground.answers else {"num_labels": len(inputs.examples.labels)}
    if ground.four_bit:
        options["device_map"] = {"": ground.device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    auto = AutoModelForCausalLM if ground.answers else AutoModelForSequenceClassification
    model = auto.from_pretrained(inputs.backbone.folder, dtype=dtype, **options)
    model.config.pad_token_id = inputs.tokenizer.pad_token_id
    return model


def lora(ground: Ground) -> LoraConfig:
    """Return the same adapter as sentexp's, and of encoders the same modules of the head."""
    peft = ground.inputs.config.peft
    assert isinstance(peft, Lora)
    kind = TaskType.CAUSAL_LM if ground.answers else TaskType.SEQ_CLS
    encoder = encoder_of(AutoConfig.from_pretrained(ground.inputs.backbone.folder))
    head: dict[str, Any] = {}
    if encoder is not None:
        inside = "|".join(map(re.escape, encoder.head))
        head = {"modules_to_save": list(encoder.head), "exclude_modules": rf"({inside})(\..*)?"}
    size = {"r": peft.r, "lora_alpha": peft.alpha, "lora_dropout": peft.dropout}
    return LoraConfig(task_type=kind, target_modules="all-linear", **size, **head)


def grouped(examples: list[dict[str, Any]], batch_size: int, generator: torch.Generator) -> list[int]:
    """Return the order that transformers' length grouping gives rows that are one stretch of an epoch."""
    lengths = [len(example["input_ids"]) for example in examples]
    order = get_length_grouped_indices(lengths, batch_size, -(-len(lengths) // batch_size), generator)
    return list(order)


def _arguments(ground: Ground, batch_size: int) -> dict[str, Any]:
    """Return the training arguments that all Trainers have; the rows come in their order already."""
    return {
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "learning_rate": RATE,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": ground.device.type == "cpu",
    }


def _timed(trainer: Trainer, run: Callable[[], Any], rows: int) -> float:
    """Return the seconds that a Trainer takes for its training or its prediction of so many rows."""
    size = trainer.args.per_device_train_batch_size
    clock = Clock(steps=-(-rows // size), device=trainer.args.device)
    callback = _TrainerClock(clock)
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    run()
    trainer.remove_callback(callback)
    return clock.seconds
