"""Running a backbone over packed rows: Llama, BERT and their like through fast layers, others through transformers'."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sentexp.config import AnswerLoss
from sentexp.data.packing import Packed, Packer
from sentexp.data.prompts import Prompt
from sentexp.distributed.sharding import is_sharded
from sentexp.models.encoders import ENCODERS, encoder_of
from sentexp.models.fast.attention import takes_flash, use_packed_attention, without_grid
from sentexp.models.fast.encoder import EncoderLayers
from sentexp.models.fast.fusion_context import ForwardOutput, fused_run
from sentexp.models.fast.llama import LlamaLayers
from sentexp.models.fast.prefix_cache import PrefixCache, within
from sentexp.models.fast.row_cache import RowCache
from sentexp.models.fast.support import supports
from sentexp.models.structure import base_of

PADDING_FREE_ARCHITECTURES = (
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""Decoders whose rows can be packed: each was compared with its padded rows in the tests. See `encoders` for others."""


def packer_for(architecture: str, prompt: Prompt, loss: AnswerLoss = AnswerLoss.answer) -> Packer | None:
    """Return what lays the rows of an architecture out without padding; None where they are padded.

    Args:
        architecture: transformers' name of it.
        prompt: of the run.
        loss: what a language model learns from.
    """
    encoder = ENCODERS.get(architecture)
    if encoder is not None:
        return Packer(causal=False) if encoder.packs else None
    if architecture not in PADDING_FREE_ARCHITECTURES:
        return None
    return Packer(answers=prompt.answers, end=prompt.end, loss=loss)


class PaddingFreeModel:
    """A model that reads packed rows.

    Args:
        model: transformers' model, with its adapter where it has one.
        compiled: let torch.compile make the code of the fast layers, in training.
        row_cache: keeps what no training changes in the states of rows, where fast layers read them.
    """

    def __init__(self, model: nn.Module, compiled: bool = False, row_cache: RowCache | None = None) -> None:
        self.model = model
        self.row_cache = row_cache
        self.compiled = compiled
        self.before_training_pass: Callable[[Packed], None] | None = None
        """Called with the rows that the fast layers are to read in training."""
        self._layers: LlamaLayers | None = None
        self._encoder_layers: EncoderLayers | None = None
        self._is_supported: bool | None = None
        self._fused_outputs: list[ForwardOutput] = []

    def hidden(self, packed: Packed, cache: PrefixCache | None = None, segments: Tensor | None = None) -> Tensor:
        """Return the hidden states that are read, shape (read, hidden).

        Args:
            packed: the rows.
            cache: of what all of them begin with.
            segments: of the tokens, 0 or 1, shape (tokens,), where an encoder reads pairs.
        """
        if self.uses_fast_layers(packed):
            return self._fast_hidden(packed, cache) if packed.causal else self._encoded(packed, segments)
        packed, backbone = within(packed, cache), base_of(self.model).base_model
        encoder = encoder_of(backbone.config)
        if encoder is not None and not encoder.through_interface:
            return _padded_again(backbone, packed)
        options = {} if segments is None else {"token_type_ids": segments[None]}
        states: Tensor = _run(backbone, packed, cache, **options).last_hidden_state[0]
        return states.index_select(0, packed.read)

    def logits(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the logits over the vocabulary at the tokens that are read, shape (read, vocabulary)."""
        base = base_of(self.model)
        logits: Tensor
        if self.uses_fast_layers(packed):
            logits = base.get_output_embeddings()(self._fast_hidden(packed, cache))
            return logits
        packed = within(packed, cache)
        logits = _run(base, packed, cache, logits_to_keep=packed.read).logits[0]
        return logits

    def uses_fast_layers(self, packed: Packed) -> bool:
        """Tell whether these rows go through the fast layers; those of decoders have the dropout of adapters alone."""
        backbone = base_of(self.model).base_model
        longest = packed.prefix + packed.grid.shape[1]
        if self._is_supported is None:
            self._is_supported = not is_sharded(self.model) and supports(backbone)
        window = getattr(backbone.config, "sliding_window", None)
        return self._is_supported and (window is None or longest <= window)

    def recordable(self, texts: Any) -> Packed | None:
        """Return rows as a CUDA graph reads them: their shape is all that a pass of the fast layers depends on.

        None where other layers read them, or those of an encoder, which have no graphs.
        """
        if not isinstance(texts, Packed) or not texts.causal or not self.uses_fast_layers(texts):
            return None
        layers = self.fast_layers
        is_plain = not texts.prefix and takes_flash(texts, layers.dtype, layers.head_size)
        return without_grid(texts) if is_plain else texts

    @property
    def fast_layers(self) -> LlamaLayers:
        """The layers in place of a decoder's own, where these are supported."""
        if self._layers is None:
            self._layers = LlamaLayers(base_of(self.model).base_model, self.compiled, self.row_cache)
        return self._layers

    def finish(self) -> None:
        """After the backward pass of a loss: let fused runs have the gradients of their adapters (see `multi_run`)."""
        run = fused_run()
        if run is not None:
            for output in self._fused_outputs:
                run.backward(output)
        self._fused_outputs.clear()

    def _encoded(self, packed: Packed, segments: Tensor | None) -> Tensor:
        """Return the hidden states that are read by the fast layers of an encoder."""
        if self._encoder_layers is None:
            self._encoder_layers = EncoderLayers(base_of(self.model).base_model)
        if self.before_training_pass is not None and self.model.training:
            self.before_training_pass(packed)
        return self._encoder_layers(packed, segments)

    def _fast_hidden(self, packed: Packed, cache: PrefixCache | None) -> Tensor:
        """Return the hidden states that are read by the fast layers; in a fused sweep with those of other runs."""
        if self.before_training_pass is not None and self.fast_layers.trains:
            self.before_training_pass(packed)
        run = fused_run()
        if run is None:
            return self.fast_layers(packed, cache)
        output = run.forward(self.fast_layers, packed, cache)
        if isinstance(output, Tensor):
            return output
        self._fused_outputs.append(output)
        return output.leaf


def _padded_again(backbone: Any, packed: Packed) -> Tensor:
    """Return the hidden states that are read, shape (read, hidden), of rows that are padded on the right."""
    ids, positions = (
        part.index_select(0, packed.grid.flatten()).view_as(packed.grid) for part in (packed.ids, packed.positions)
    )
    mask = packed.bias[:, 0] == 0
    states: Tensor = backbone(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return states.flatten(0, 1).index_select(0, packed.cells.index_select(0, packed.read))


def _run(base: Any, packed: Packed, cache: PrefixCache | None, **options: Any) -> Any:
    """Run a transformers model over packed rows."""
    use_packed_attention(base.config)
    unused = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=packed.ids.device)  # four dimensions: taken as it is
    return base(
        input_ids=packed.ids[None],
        attention_mask=unused,
        position_ids=packed.positions[None],
        use_cache=False,
        packed=packed,
        prefix_cache=cache,
        **options,
    )
