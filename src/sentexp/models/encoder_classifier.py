"""Scoring by an encoder: logits of the classes from the tokens that the architecture itself pools."""

from typing import Any

import torch
from torch import Tensor, nn

from sentexp.data.datamodule import Texts
from sentexp.data.packing import Packed
from sentexp.models.encoders import encoder_of, first_position, mean_of_tokens, pool, pooling_of
from sentexp.models.fast.attention import PrefixCache
from sentexp.models.feature_cache import FeatureCache
from sentexp.models.sequence_classifier import Scores, SequenceClassifier
from sentexp.models.structure import base_of


class EncoderClassifier(SequenceClassifier):
    """A sequence classifier over an encoder, pooled as transformers pools it, but by position (law 4).

    transformers numbers the positions of some encoders by looking for the pad id. Here the attention mask says where a
    row is. On texts that do not hold that id both give the same logits, whatever the padding.

    Args:
        model: transformers' sequence classifier, with or without a PEFT adapter.
        compiled: see `PaddingFreeModel`.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        super().__init__(model, compiled)
        base = base_of(model)
        self.encoder = encoder_of(base.config)
        self.first_position = first_position(base)
        self.pooling = pooling_of(base.config)

    def forward(self, texts: Texts, cache: PrefixCache | None = None) -> Scores:
        """Return the scores of rows, padded on either side or packed."""
        del cache  # every token sees all others, so that no rows share a prefix
        assert self.encoder is not None
        base, late = base_of(self.model), self.pooling == "late"
        read = self._states(texts) if late else self.features(texts)
        with torch.autocast(read.device.type, enabled=False):
            logits = self.encoder.logits(base, read.flatten(0, -2))
            if late:
                logits = mean_of_tokens(logits.unflatten(0, read.shape[:2]), _mask(texts))
        return Scores(logits)

    def features(self, texts: Texts, cache: PrefixCache | None = None) -> Tensor:
        """Return float32 states of rows, shape (rows, hidden): what the head reads, or their mean where it pools."""
        del cache
        if isinstance(texts, Packed) and self.pooling == "first":
            first = self.packed.hidden(self._numbered(texts)).index_select(0, texts.grid[:, 0])
            return first.float()
        return pool(self._states(texts), _mask(texts), self.pooling)

    def _states(self, texts: Texts) -> Tensor:
        """Return the float32 hidden states of all tokens, shape (rows, tokens, hidden)."""
        if isinstance(texts, Packed):
            states = self.packed.hidden(self._numbered(texts))
            grid: Tensor = states.index_select(0, texts.grid.flatten()).unflatten(0, texts.grid.shape)
            return grid.float()
        return self._padded(texts.ids, texts.mask).float()

    def _numbered(self, packed: Packed) -> Packed:
        """Return packed rows with positions as the encoder numbers them."""
        return packed._replace(positions=packed.positions + self.first_position)

    def _padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + self.first_position
        encoder: Any = base_of(self.model).base_model
        states: Tensor = encoder(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        return states


def classifier_over(
    model: nn.Module, compiled: bool = False, feature_cache: FeatureCache | None = None
) -> SequenceClassifier:
    """Return what scores texts by the head of a model.

    Args:
        model: transformers' sequence classifier, with or without a PEFT adapter.
        compiled: see `PaddingFreeModel`.
        feature_cache: keeps the features of texts, where no training changes them and a decoder has no dropout.
    """
    if encoder_of(base_of(model).config) is not None:
        return EncoderClassifier(model, compiled)
    return SequenceClassifier(model, compiled, feature_cache)


def _mask(texts: Texts) -> Tensor:
    """Return 1 where a row has a token, shape (rows, tokens)."""
    if not isinstance(texts, Packed):
        return texts.mask
    columns = torch.arange(texts.grid.shape[1], device=texts.grid.device)
    return (columns < texts.starts.diff()[:, None]).long()
