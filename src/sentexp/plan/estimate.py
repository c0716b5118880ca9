"""Arithmetic of memory: bytes of a run from the shapes of its model, without its weights.

Bytes kept for the backward pass: 34 for each token, layer and unit of the hidden width in 16 bits (Korthikanti et al.
2022, section 4.1), and 8 for each unit of the feed-forward layer, as gated ones keep more.
"""

from dataclasses import dataclass

from torch import nn

from sentexp.config import (
    AnswerLoss,
    Average,
    CausalLM,
    Config,
    HeadOnly,
    OptimizerName,
    PeftConfig,
    Precision,
    Quantization,
    TrainerConfig,
    Untuned,
)
from sentexp.models.adapters import ParameterAudit
from sentexp.models.quantized import GROUP
from sentexp.models.structure import base_of
from sentexp.plan.workload import Size
from sentexp.training.batch_plan import halve_micro_batch

KEPT_PER_HIDDEN, KEPT_PER_INNER, KEPT_PER_SCORE, KEPT_IN_FP32 = 34, 8, 5, 1.5
BYTES = {Precision.fp32: 4.0, Precision.bf16: 2.0, Precision.fp16: 2.0}
STATE = {
    OptimizerName.adamw: 8.0,
    OptimizerName.paged_adamw_32bit: 8.0,
    OptimizerName.adamw_8bit: 2.0,
    OptimizerName.paged_adamw_8bit: 2.0,
    OptimizerName.muon: 4.0,
    OptimizerName.lion: 4.0,
    OptimizerName.schedule_free: 8.0,
}
"""Bytes that an optimizer keeps for each weight that trains; Adafactor's are too few to count."""


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

    def weight_bytes(self, precision: Precision) -> float:
        """Return the bytes of all weights: frozen ones in `precision` or packed, those that train in float32."""
        frozen, plain = self.parameters.frozen, BYTES[precision]
        layers = frozen["linear layers"] * packed_bytes(self.config.peft, precision)
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
        average = 4.0 if self.config.trainer.average is Average.ema else 0.0
        passes = 2 if self.config.task.r_drop else 1
        trained = self._trained * (4.0 + state + average + copies)
        return self.weight_bytes(precision) + trained + passes * self.activations(size, precision)

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
        return (
            kept + 3 * 4.0 * size.rows * self._scored(size.width) * shape.vocabulary
        )  # logits, their softmax and their gradient

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

    @property
    def _trained(self) -> int:
        return self.parameters.trainable_total

    def _scored(self, width: int) -> int:
        """Return the tokens of a training row whose logits over the vocabulary are computed."""
        task = self.config.task
        if not isinstance(task, CausalLM):
            return 0
        return width if task.loss is AnswerLoss.full else min(width, ANSWER_TOKENS)


ANSWER_TOKENS = 4
"""Assumed of an answer: a label word of a token or two, and its end."""


def packed_bytes(peft: PeftConfig, precision: Precision) -> float:
    """Return the bytes of a weight in a frozen linear layer, with its part of the scales."""
    match peft.quantization:
        case Quantization.none:
            return BYTES[precision]
        case Quantization.nf4 | Quantization.fp4:
            return 0.5 + (0.127 / 8 if peft.double_quant else 0.5 / 8)  # Dettmers et al. 2023, section 3
        case Quantization.hqq4:
            return 0.5 + 2 * BYTES[precision] / GROUP  # a scale and a zero point for each group
    return 1.0  # with a scale for each row
