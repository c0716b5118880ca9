"""Arithmetic for machines that are not at hand: operations and bytes of a run, from the shapes of its model.

Operations: a token costs 2 for each weight that it is multiplied by, and attention 4 times its width for each token it
looks at (Kaplan et al. 2020, section 2.1); the backward pass as much again for the gradient of the inputs, and once
more for weights that train. Bytes kept for the backward pass: 34 for each token, layer and unit of the hidden width in
16 bits (Korthikanti et al. 2022, section 4.1), and 8 for each unit of the feed-forward layer, as gated ones keep more.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from sentexp.config import (
    AnswerLoss,
    CausalLM,
    Config,
    FullFineTuning,
    HeadOnly,
    OptimizerName,
    Precision,
    Quantization,
    TrainerConfig,
    Untuned,
)
from sentexp.data.splits import Numbers
from sentexp.models.adapters import ParameterAudit
from sentexp.models.backbone import base_of
from sentexp.plan.workload import Batches, Size, Workload
from sentexp.system.hardware import GIB
from sentexp.training.trainer import halve_micro_batch

UTILISATION = 0.3
"""Assumed: the share of the peak rate that training reaches."""
UNPACKING = 1.5
"""Assumed: how much longer a step on 4-bit or 8-bit weights takes (Raschka 2023 saw 1.5 for a 7B model)."""
LAUNCH = 10e-6
"""Assumed: seconds to launch a kernel, which is all that a small model waits for."""
TRAINING_KERNELS, EVALUATION_KERNELS = 220, 95
"""Operations, views and casts left out, that PyTorch does for each layer of a Llama with LoRA on all its matrices."""
CONTEXT = 0.5 * GIB
"""Assumed: what CUDA takes for itself."""
USABLE = 0.95
"""Assumed: the share of a GPU's memory that can be used before fragments stand in the way."""
KEPT_PER_HIDDEN, KEPT_PER_INNER, KEPT_PER_SCORE, KEPT_IN_FP32 = 34, 8, 5, 1.5
BYTES = {Precision.fp32: 4.0, Precision.bf16: 2.0, Precision.fp16: 2.0}
STATE = {
    OptimizerName.adamw: 8.0,
    OptimizerName.paged_adamw_32bit: 8.0,
    OptimizerName.adamw_8bit: 2.0,
    OptimizerName.paged_adamw_8bit: 2.0,
}
"""Bytes that an optimizer keeps for each weight that trains; Adafactor's are too few to count."""


@dataclass(kw_only=True, slots=True)
class Machine:
    """A GPU: memory in GiB, bytes per second, and dense operations per second in each arithmetic (0: not native)."""

    name: str
    memory: float
    bandwidth: float
    bf16: float
    fp16: float
    fp32: float

    def precision(self, asked: Precision) -> Precision:
        """Return what `trainer.precision` would be there."""
        if asked is not Precision.auto:
            return asked
        return Precision.bf16 if self.bf16 else Precision.fp32

    def rate(self, precision: Precision) -> float:
        """Return operations per second; an arithmetic that is not native is done in float32."""
        return {Precision.bf16: self.bf16, Precision.fp16: self.fp16, Precision.fp32: self.fp32}[precision] or self.fp32


MACHINES = (
    Machine(name="T4 16 GB", memory=15.0, bandwidth=320e9, bf16=0, fp16=65e12, fp32=8.1e12),
    Machine(name="RTX 4090 24 GB", memory=24.0, bandwidth=1008e9, bf16=165.2e12, fp16=165.2e12, fp32=82.6e12),
    Machine(name="A100 40 GB", memory=39.6, bandwidth=1555e9, bf16=312e12, fp16=312e12, fp32=19.5e12),
    Machine(name="A100 80 GB", memory=79.2, bandwidth=2039e9, bf16=312e12, fp16=312e12, fp32=19.5e12),
    Machine(name="H100 80 GB", memory=79.2, bandwidth=3350e9, bf16=989.4e12, fp16=989.4e12, fp32=66.9e12),
)
"""After NVIDIA's data sheets: tensor cores without sparsity, float32 without TF32, as PyTorch multiplies by default."""


@dataclass(kw_only=True, slots=True)
class Shape:
    """Of a model: layers, hidden width, width of the feed-forward layer, of all heads together, heads, vocabulary.

    `scores_kept`: attention keeps its scores for the backward pass.
    """

    layers: int
    hidden: int
    inner: int
    attention: int
    heads: int
    vocabulary: int
    scores_kept: bool


def shape_of(model: nn.Module) -> Shape:
    """Return the shape of a transformers model, wrapped by PEFT or not."""
    config = base_of(model).config
    text = config.get_text_config()
    heads = text.num_attention_heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=inner,
        attention=heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
        heads=heads,
        vocabulary=text.vocab_size,
        scores_kept=config._attn_implementation == "eager",
    )


@dataclass(kw_only=True, slots=True)
class Arithmetic:
    """What the batches of a run cost by its shapes."""

    config: Config
    shape: Shape
    parameters: ParameterAudit

    def forward(self, batches: Batches, trains: bool = False) -> Numbers:
        """Return operations of a forward pass over each batch."""
        shape, tokens = self.shape, batches.computed.astype(float)
        weights = self._linear + self.parameters.trainable["adapter"]
        looked = 4.0 * shape.layers * shape.attention * batches.width
        logits = 2.0 * shape.hidden * shape.vocabulary * batches.rows * self._scored(batches.width, trains)
        return tokens * (2.0 * weights + looked) + logits

    def training(self, batches: Batches) -> Numbers:
        """Return operations of forward and backward pass over each batch."""
        once = self.forward(batches, trains=True)
        if isinstance(self.config.peft, Untuned | HeadOnly):
            return once
        recomputed = once if self.config.trainer.gradient_checkpointing else 0.0
        if isinstance(self.config.peft, FullFineTuning):
            return 3.0 * once + recomputed
        return 2.0 * once + recomputed + 2.0 * self.parameters.trainable["adapter"] * batches.computed

    def weight_bytes(self, precision: Precision) -> float:
        """Return the bytes of all weights: frozen ones in `precision` or packed, those that train in float32."""
        frozen, peft = self.parameters.frozen, self.config.peft
        plain = BYTES[precision]
        scales = 0.127 / 8 if peft.double_quant else 0.5 / 8  # per weight: Dettmers et al. 2023, section 3
        packed = {Quantization.none: plain, Quantization.int8: 1.0}.get(peft.quantization, 0.5 + scales)
        layers = frozen["linear layers"] * packed
        return (
            layers
            + 4.0 * (self._trained + frozen["head"])
            + plain * (frozen["embeddings"] + frozen["norms and biases"])
        )

    def memory(self, size: Size, precision: Precision) -> float:
        """Return the bytes of a training step on a batch of this size, without what the device takes for itself."""
        momentum = 4.0 if self.config.optim.momentum else 0.0
        state = momentum if self.config.optim.name is OptimizerName.sgd else STATE.get(self.config.optim.name, 0.0)
        copies = 0.0 if precision is Precision.fp32 else BYTES[precision]  # autocast keeps them for the backward pass
        trained = self._trained * (4.0 + state + copies)
        return self.weight_bytes(precision) + trained + self.activations(size, precision)

    def activations(self, size: Size, precision: Precision) -> float:
        """Return the bytes that a forward pass keeps for the backward pass."""
        shape = self.shape
        wider = KEPT_IN_FP32 if precision is Precision.fp32 else 1.0
        scores = KEPT_PER_SCORE * shape.heads * size.width if shape.scores_kept else 0
        layer = size.tokens * wider * (KEPT_PER_HIDDEN * shape.hidden + KEPT_PER_INNER * shape.inner + scores)
        boundary = size.tokens * shape.hidden * BYTES[precision]
        kept = shape.layers * layer
        if isinstance(self.config.peft, Untuned | HeadOnly):
            kept = layer
        elif self.config.trainer.gradient_checkpointing:
            kept = shape.layers * boundary + layer
        scored = float(self._scored(np.array([size.width]), trains=True)[0])
        return kept + 3 * 4.0 * size.rows * scored * shape.vocabulary  # logits, their softmax and their gradient

    def largest_that_fits(self, work: Workload, machine: Machine) -> TrainerConfig | None:
        """Return the training loop whose largest batch fits, halved where needed (law 9); None where none does."""
        precision = machine.precision(self.config.trainer.precision)
        available = machine.memory * GIB * USABLE - CONTEXT
        return self.halved_until_it_fits(work.train.largest_size, precision, available)

    def halved_until_it_fits(self, size: Size, precision: Precision, available: float) -> TrainerConfig | None:
        """Return the training loop whose batches, of a size or parts of it, fit; None where none does.

        Args:
            size: of the largest batch.
            precision: of the arithmetic.
            available: bytes.
        """
        trainer: TrainerConfig | None = self.config.trainer
        while trainer is not None and not self.fits(size.cut(self.config.trainer, trainer), precision, available):
            trainer = halve_micro_batch(trainer, 1 if trainer.max_tokens is None else 2 * size.width)
        return trainer

    def fits(self, size: Size, precision: Precision, available: float) -> bool:
        """Tell whether a training step on a batch of this size needs no more than the available bytes."""
        return self.memory(size, precision) <= available

    def seconds(self, work: Workload, machine: Machine) -> float:
        """Return how long training and evaluations take: by arithmetic, reading of weights, or launching of kernels."""
        precision = machine.precision(self.config.trainer.precision)
        rate = machine.rate(precision) * UTILISATION
        reading = self.weight_bytes(precision) / machine.bandwidth
        slower = 1.0 if self.config.peft.quantization is Quantization.none else UNPACKING
        launching = self.shape.layers * LAUNCH
        step = np.maximum(self.training(work.train) / rate, max(2 * reading, TRAINING_KERNELS * launching))
        validation, test = (
            np.maximum(self.forward(part) / rate, max(reading, EVALUATION_KERNELS * launching)).sum()
            for part in (work.validation, work.test)
        )
        return float(slower * (step.sum() * work.epochs + validation * work.evaluations + test))

    @property
    def _trained(self) -> int:
        return self.parameters.trainable_total

    @property
    def _linear(self) -> int:
        return self.parameters.frozen["linear layers"] + self.parameters.trainable["linear layers"]

    def _scored(self, width: Numbers, trains: bool) -> Numbers:
        """Return the tokens of each row whose logits over the vocabulary are computed."""
        task = self.config.task
        if not isinstance(task, CausalLM):
            return np.zeros_like(width)
        return width if trains and task.loss is AnswerLoss.full else np.minimum(width, ANSWER_TOKENS)


ANSWER_TOKENS = 4
"""Assumed of an answer: a label word of a token or two, and its end."""
