"""Encoders that classify: which modules of transformers' classifier are its head, and what the head reads.

A decoder reads its last token and has a linear head, `score`. Each encoder pools and classifies in its own way, with a
head of several modules. They are transformers' own, so that what is saved is read by transformers alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(kw_only=True, slots=True, frozen=True)
class Encoder:
    """What is particular to an architecture; paths are those of modules in transformers' sequence classifier.

    `head` are the modules of the head, and `output` is the layer in it with a row for each label. `logits` takes the
    classifier and pooled states, shape (rows, hidden), through the head. `packs` says whether rows can be packed, and
    `through_interface` whether transformers' own layers can read them so, as their attention can be replaced; else the
    fast layers alone can, and what these do not support is padded again. Where positions are numbered from the pad id,
    `counts_from_pad`. `ia3` are the targets and the feed-forward modules of IA3 where PEFT knows none.
    """

    head: tuple[str, ...]
    logits: Callable[[Any, Tensor], Tensor]
    output: str = "classifier"
    packs: bool = True
    through_interface: bool = True
    counts_from_pad: bool = False
    ia3: tuple[tuple[str, ...], tuple[str, ...]] | None = None


def _of_first_token(model: Any, pooled: Tensor) -> Tensor:
    """Return the logits of a head that takes the first token out of a row itself."""
    logits: Tensor = model.classifier(pooled[:, None])
    return logits


def _of_bert(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(model.bert.pooler(pooled[:, None])))
    return logits


def _of_albert(model: Any, pooled: Tensor) -> Tensor:
    albert = model.albert
    logits: Tensor = model.classifier(model.dropout(albert.pooler_activation(albert.pooler(pooled))))
    return logits


def _of_distilbert(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(nn.functional.relu(model.pre_classifier(pooled))))
    return logits


def _of_deberta(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(model.pooler(pooled[:, None])))
    return logits


def _of_modernbert(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.drop(model.head(pooled)))
    return logits


def _of_eurobert(model: Any, pooled: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.activation(model.dense(pooled)))
    return logits


_BERT_IA3 = ("key", "value", "output.dense"), ("output.dense",)
_ROBERTA = Encoder(
    head=("classifier",),
    output="classifier.out_proj",
    logits=_of_first_token,
    counts_from_pad=True,
    ia3=_BERT_IA3,
)

ENCODERS = {
    "albert": Encoder(
        head=("albert.pooler", "classifier"),
        logits=_of_albert,
        ia3=(("key", "value", "ffn_output"), ("ffn_output",)),
    ),
    "bert": Encoder(head=("bert.pooler", "classifier"), logits=_of_bert, ia3=_BERT_IA3),
    "deberta-v2": Encoder(head=("pooler", "classifier"), logits=_of_deberta, packs=False),
    "distilbert": Encoder(
        head=("pre_classifier", "classifier"),
        logits=_of_distilbert,
        ia3=(("k_lin", "v_lin", "lin2"), ("lin2",)),
    ),
    "electra": Encoder(head=("classifier",), output="classifier.out_proj", logits=_of_first_token, ia3=_BERT_IA3),
    "eurobert": Encoder(
        head=("dense", "classifier"),
        logits=_of_eurobert,
        ia3=(("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    ),
    "modernbert": Encoder(head=("head", "classifier"), logits=_of_modernbert, ia3=(("Wqkv", "mlp.Wo"), ("mlp.Wo",))),
    "mpnet": Encoder(
        head=("classifier",),
        output="classifier.out_proj",
        logits=_of_first_token,
        through_interface=False,
        counts_from_pad=True,
        ia3=(("k", "v", "output.dense"), ("output.dense",)),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""The encoders that classify, by transformers' names of their architectures (DeBERTa-v3 is deberta-v2 there)."""


def encoder_of(config: Any) -> Encoder | None:
    """Return what is particular to the encoder of a transformers configuration; None for a decoder."""
    return ENCODERS.get(config.get_text_config().model_type)


def first_position(model: Any) -> int:
    """Return the number of the first position of a row, in transformers' model."""
    encoder = encoder_of(model.config)
    if encoder is None or not encoder.counts_from_pad:
        return 0
    return int(model.base_model.embeddings.padding_idx) + 1


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return what the head reads of rows, shape (rows, hidden).

    Args:
        states: hidden states, shape (rows, tokens, hidden).
        mask: 1 where there is a token, shape (rows, tokens).
        pooling: first, mean or late; the last is a mean as well.
    """
    if pooling != "first":
        return mean_of_tokens(states, mask)
    first = mask.argmax(1)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, first).squeeze(1)


def mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Return the means over the tokens of rows, shape (rows, width), of values of the shape (rows, tokens, width)."""
    return (values * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def pooling_of(config: Any) -> str:
    """Return the pooling of an encoder: first token, mean of the tokens, or late, the mean of the tokens' logits."""
    named = getattr(config, "classifier_pooling", "cls")
    return {"cls": "first", "bos": "first"}.get(named, named)
