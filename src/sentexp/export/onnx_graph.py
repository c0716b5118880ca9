"""What a trained model computes, as a graph: token ids and mask of rows padded on the right, to logits of labels."""

from typing import Any

import torch
from torch import Tensor, nn

from sentexp.data.batch import Padded
from sentexp.errors import require
from sentexp.models.encoder_classifier import EncoderClassifier
from sentexp.models.encoders import encoder_of
from sentexp.models.links import Link, link_of
from sentexp.models.saved import Trained
from sentexp.models.structure import final_logits, head_of


def graph_of(model: Any, trained: Trained, separator: int | None = None) -> nn.Module:
    """Return the graph of a merged model.

    Args:
        model: of transformers.
        trained: its weights, and what they answer.
        separator: see `EncoderClassifier`.

    Raises:
        UserError: label words of several tokens.
    """
    encodes = encoder_of(model.config) is not None
    if not encodes or model._can_set_attn_implementation():
        model.set_attn_implementation("eager")
    link = link_of(trained.loss, trained.scale)
    return (EncoderGraph(model, separator, link) if encodes else DecoderGraph(model, trained)).train(False)


class EncoderGraph(nn.Module):
    """An encoder and its head."""

    def __init__(self, model: nn.Module, separator: int | None, link: Link) -> None:
        super().__init__()
        self.classifier = EncoderClassifier(model, separator=separator, link=link)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, shape (rows, labels)."""
        logits: Tensor = self.classifier(Padded(ids, mask)).logits
        return logits


class DecoderGraph(nn.Module):
    """A decoder, and its head or the rows of label words."""

    prior: Tensor

    def __init__(self, model: Any, trained: Trained) -> None:
        super().__init__()
        self.answers, self.base, self.link = trained.answers, model.base_model, link_of(trained.loss, trained.scale)
        head: Any = model.get_output_embeddings() if trained.answers else head_of(model)
        self.weight, self.bias = head.weight, head.bias
        if trained.answers:
            words = trained.prompt.answers
            require(
                max(map(len, words)) == 1,
                f"format=onnx answers with one token for each label, and run {trained.identity} has label words of "
                "several: use format=merged, or train with task.label_words of one token each.",
            )
            first = [word[0] for word in words]
            self.weight = nn.Parameter(head.weight[first])
            self.bias = None if head.bias is None else nn.Parameter(head.bias[first])
        prior = torch.ones(len(trained.labels)) if trained.prior is None else torch.tensor(trained.prior)
        self.register_buffer("prior", prior.clamp(min=torch.finfo(prior.dtype).tiny).log())

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, shape (rows, labels)."""
        tokens = ids.shape[1]
        column = torch.arange(tokens, device=ids.device)
        seen = (column <= column[:, None])[None, None] & mask.bool()[:, None, None, :]
        hidden = self.base(
            input_ids=ids,
            attention_mask=torch.where(seen, 0.0, torch.finfo(torch.float32).min),
            position_ids=column.expand_as(ids),
            use_cache=False,
        ).last_hidden_state
        last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        logits = nn.functional.linear(hidden.gather(1, last).squeeze(1), self.weight, self.bias)
        logits = final_logits(self.base, logits) if self.answers else logits
        return self.link(logits) - self.prior
