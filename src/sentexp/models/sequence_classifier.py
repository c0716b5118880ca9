"""Scoring by a head: logits of the classes from the last token's hidden state, pooled by position (law 4)."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sentexp.data.batch import Texts
from sentexp.data.packing import Packed
from sentexp.models.fast.padding_free import PaddingFreeModel
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.fast.row_cache import RowCache
from sentexp.models.links import UNCHANGED, Link
from sentexp.models.pretrained import Backbone
from sentexp.models.structure import base_of, head_of
from sentexp.models.virtual_tokens import inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Scores(NamedTuple):
    """What a model says about rows: `logits` are float32, shape (rows, classes), their softmax the probabilities.

    A language model also gives `outside`, the probability of everything but the labels; `first_token`, its most likely
    next token; and `irregular`, whether no label begins with that token: all of shape (rows,).
    """

    logits: Tensor
    outside: Tensor | None = None
    first_token: Tensor | None = None
    irregular: Tensor | None = None


class SequenceClassifier(nn.Module):
    """A sequence classifier whose pooling never looks for a pad token.

    transformers' own classifier takes the last token that differs from the pad id, so a text that ends in that id is
    pooled too early. Here the attention mask says where a row ends. On other texts both give the same logits.

    Args:
        model: transformers' sequence classifier, with or without a PEFT adapter.
        compiled: see `PaddingFreeModel`.
        row_cache: keeps what no training changes: features, where the head alone trains, or states of the lower layers.
        link: from the outputs of the head to logits.
    """

    def __init__(
        self,
        model: nn.Module,
        compiled: bool = False,
        row_cache: RowCache | None = None,
        link: Link = UNCHANGED,
    ) -> None:
        super().__init__()
        self.model = model
        self.link = link
        self.row_cache = row_cache
        self.packed = PaddingFreeModel(model, compiled, row_cache)

    def forward(self, texts: Texts, cache: PrefixCache | None = None) -> Scores:
        """Return the scores of rows.

        Args:
            texts: rows, padded on either side or packed.
            cache: of what all packed rows of an evaluation begin with.
        """
        pooled = self.features(texts, cache)
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.link(head_of(base_of(self.model))(pooled))
        return Scores(logits)

    def features(self, texts: Texts, cache: PrefixCache | None = None) -> Tensor:
        """Return the float32 hidden states of the last tokens, shape (rows, hidden): what the head reads."""
        if isinstance(texts, Packed) and self._keeps_features(texts):
            assert self.row_cache is not None
            return torch.stack(self.row_cache.get("features", texts, lambda rows: [*self.packed.hidden(rows).float()]))
        if isinstance(texts, Packed):
            return self.packed.hidden(texts, cache).float()
        inputs = inputs_of(self.model, texts.ids, texts.mask, (texts.mask.cumsum(-1) - 1).clamp(min=0))
        backbone = base_of(self.model).base_model
        hidden = backbone(**inputs.options, use_cache=False).last_hidden_state[:, inputs.ahead :]
        last = texts.mask.shape[1] - 1 - texts.mask.flip(1).argmax(1)
        return hidden[torch.arange(len(last), device=last.device), last].float()  # type: ignore[no-any-return]

    def _keeps_features(self, texts: Packed) -> bool:
        return self.row_cache is not None and self.packed.uses_fast_layers(texts) and self.packed.fast_layers.is_frozen

    def losses(self, texts: Texts, targets: Tensor) -> Tensor:
        """Return the loss of each row, shape (rows,): of classes the cross-entropy."""
        return self.link.losses(self.choices(texts), targets)

    def choices(self, texts: Texts) -> Tensor:
        """Return the logits of the classes that the training learns, shape (rows, classes)."""
        logits: Tensor = self(texts).logits
        return logits


def start_head_at_label_words(
    model: "PreTrainedModel", backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", template: str, labels: list[str]
) -> None:
    """Set the head's rows to the output embeddings of the label words, so that training starts from what the
    language model already answers to the prompt (the verbaliser of Schick & Schuetze 2021 as an initialisation).

    A word of several tokens has the mean of their embeddings.
    """  # noqa: D205
    prompt = template.partition("{text}")[2]
    rows = [_answer_tokens(tokenizer, prompt, label) for label in labels]
    matrix = _output_embeddings(model, backbone)
    head = head_of(model)
    with torch.no_grad():
        for index, tokens in enumerate(rows):
            head.weight[index] = matrix[tokens].float().mean(0).to(head.weight.device)
        if head.bias is not None:
            head.bias.zero_()


def _answer_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str, word: str) -> list[int]:
    """Return the tokens that the word adds after the prompt."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(f"{prompt} {word}", add_special_tokens=False)["input_ids"]
    same = next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    return list(after[same:])


def _output_embeddings(model: "PreTrainedModel", backbone: Backbone) -> Tensor:
    """Return the language model's output matrix (vocabulary, hidden): from the files, or the tied input embeddings."""
    from safetensors import safe_open

    for file in sorted(backbone.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "lm_head.weight" in tensors.keys():  # noqa: SIM118 (not a dict)
                return tensors.get_tensor("lm_head.weight")  # type: ignore[no-any-return]
    return model.get_input_embeddings().weight.detach()  # type: ignore[no-any-return]
