"""Scoring by an encoder: logits of the classes from the tokens that the architecture itself pools."""

from typing import Any

import torch
from torch import Tensor, nn

from sentexp.data.batch import Padded, Texts
from sentexp.data.packing import Packed
from sentexp.models.encoders import encoder_of, first_position, mean_of_tokens, pool, pooling_of
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.fast.row_cache import RowCache
from sentexp.models.links import UNCHANGED, Link
from sentexp.models.sequence_classifier import Scores, SequenceClassifier
from sentexp.models.structure import base_of
from sentexp.models.virtual_tokens import columns_ahead, inputs_of


class EncoderClassifier(SequenceClassifier):
    """A sequence classifier over an encoder, pooled as transformers pools it, but by position (law 4).

    transformers numbers the positions of some encoders by looking for the pad id. Here the attention mask says where a
    row is. On texts that do not hold that id both give the same logits, whatever the padding.

    Args:
        model: transformers' sequence classifier, with or without a PEFT adapter.
        compiled: see `PaddingFreeModel`.
        separator: the id of the token behind the first text of a pair, where rows are pairs: what follows it is the
            second segment, in architectures that know segments.
        link: see `SequenceClassifier`.
    """

    def __init__(
        self, model: nn.Module, compiled: bool = False, separator: int | None = None, link: Link = UNCHANGED
    ) -> None:
        super().__init__(model, compiled, link=link)
        base = base_of(model)
        self.separator = separator if getattr(base.config, "type_vocab_size", 0) > 1 else None
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
                logits = mean_of_tokens(logits.unflatten(0, read.shape[:2]), self._mask(texts))
        return Scores(self.link(logits))

    def features(self, texts: Texts, cache: PrefixCache | None = None) -> Tensor:
        """Return float32 states of rows, shape (rows, hidden): what the head reads, or their mean where it pools."""
        del cache
        if isinstance(texts, Packed) and self.pooling == "first":
            return self._packed_states(texts._replace(read=texts.grid[:, 0])).float()
        return pool(self._states(texts), self._mask(texts), self.pooling)

    def _states(self, texts: Texts) -> Tensor:
        """Return the float32 hidden states of all tokens, shape (rows, tokens, hidden)."""
        if isinstance(texts, Packed):
            states = self._packed_states(texts)
            grid: Tensor = states.index_select(0, texts.grid.flatten()).unflatten(0, texts.grid.shape)
            return grid.float()
        return self._padded(*self._padded_behind(texts)).float()

    def _mask(self, texts: Texts) -> Tensor:
        """Return 1 where a row has a token, virtual ones before the others, shape (rows, tokens)."""
        if not isinstance(texts, Packed):
            return nn.functional.pad(self._padded_behind(texts).mask, (columns_ahead(self.model), 0), value=1)
        columns = torch.arange(texts.grid.shape[1], device=texts.grid.device)
        return (columns < texts.starts.diff()[:, None]).long()

    def _padded_behind(self, texts: Padded) -> Padded:
        """Return rows with their padding behind them where virtual tokens precede: some encoders count columns."""
        if not columns_ahead(self.model):
            return texts
        order = texts.mask.argsort(dim=1, descending=True, stable=True)
        return Padded(texts.ids.gather(1, order), texts.mask.gather(1, order))

    def _packed_states(self, packed: Packed) -> Tensor:
        """Return the hidden states that are read, shape (read, hidden), positions as the encoder numbers them."""
        segments = None
        if self.separator is not None:
            segments = segments_of(packed.ids, packed.positions == 0, self.separator)
        return self.packed.hidden(packed._replace(positions=packed.positions + self.first_position), segments=segments)

    def _padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + self.first_position
        encoder: Any = base_of(self.model).base_model
        options, ahead = inputs_of(self.model, ids, mask, positions)
        if self.separator is not None:
            begins = torch.zeros_like(mask, dtype=torch.bool)
            begins[:, 0] = True
            segments = segments_of(ids.flatten(), begins.flatten(), self.separator).view_as(ids)
            options["token_type_ids"] = nn.functional.pad(segments, (ahead, 0))
        states: Tensor = encoder(**options).last_hidden_state
        return states


def segments_of(ids: Tensor, begins: Tensor, separator: int) -> Tensor:
    """Return 1 for the tokens behind the first separator of their row, else 0, shape (tokens,).

    Args:
        ids: of the tokens of all rows, one after the other, shape (tokens,).
        begins: where a row begins, shape (tokens,).
        separator: the id that ends the first text of a pair.
    """
    before = (ids == separator).cumsum(0) - (ids == separator).long()
    row = begins.cumsum(0) - 1
    return (before > before[begins][row]).long()


def classifier_over(
    model: nn.Module,
    compiled: bool = False,
    row_cache: RowCache | None = None,
    separator: int | None = None,
    link: Link = UNCHANGED,
) -> SequenceClassifier:
    """Return what scores texts by the head of a model.

    Args:
        model: transformers' sequence classifier, with or without a PEFT adapter.
        compiled: see `PaddingFreeModel`.
        row_cache: see `SequenceClassifier`; encoders have none.
        separator: see `EncoderClassifier`.
        link: see `SequenceClassifier`.
    """
    if encoder_of(base_of(model).config) is not None:
        return EncoderClassifier(model, compiled, separator, link)
    return SequenceClassifier(model, compiled, row_cache, link)
