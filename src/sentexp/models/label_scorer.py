"""Scoring by likelihood: the probability of every label word as the answer to a prompt, in one forward pass."""

from dataclasses import asdict
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sentexp.config import AnswerLoss, CausalLM
from sentexp.data.answer_tree import AnswerTree
from sentexp.data.batch import Padded, Texts, pad
from sentexp.data.packing import Packed
from sentexp.distributed.sharding import is_sharded
from sentexp.errors import require
from sentexp.models.fast.padding_free import PaddingFreeModel
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.sequence_classifier import Scores
from sentexp.models.structure import base_of, final_logits
from sentexp.models.virtual_tokens import has_virtual_tokens, inputs_of

VOCABULARY_BLOCK = 1 << 14


class LabelScorer(nn.Module):
    """A causal language model as a classifier: the logit of a label is the log-likelihood of its word's tokens.

    The first tokens of the labels differ (see `build_prompt`), so one pass over the prompt gives the first token of
    each. The further tokens of the labels follow the prompt, each seen by its own label only, in the same pass.

    Args:
        model: transformers' causal language model, with or without a PEFT adapter.
        answers: the tokens of each label's word.
        end: the tokens that end an answer, learned with it and not scored.
        task: the loss, and whether likelihoods are divided by the number of tokens.
        pad_id: a token to pad with.
        max_answer_tokens: the number of tokens that `generate` writes.
        compiled: see `PaddingFreeModel`.
    """

    def __init__(
        self,
        model: nn.Module,
        answers: list[list[int]],
        end: list[int],
        task: CausalLM,
        pad_id: int,
        max_answer_tokens: int,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.packed = PaddingFreeModel(model, compiled)
        self.loss = task.loss
        self.normalize = task.length_normalization
        self.end = end
        self.pad_id = pad_id
        self.max_answer_tokens = max_answer_tokens
        require(
            max(map(len, answers)) == 1 or base_of(model).config._attn_implementation != "flash_attention_2",
            "model.attn_implementation=flash_attention_2 cannot score label words of several tokens: use sdpa, or "
            "task.label_words of one token each.",
        )
        self.tree = _TreeTensors(AnswerTree.of(answers))
        self.answers = _AnswerTensors([answer + end for answer in answers], pad_id)
        _multiply_in_float32(base_of(model).get_output_embeddings())

    def forward(self, texts: Texts, cache: PrefixCache | None = None) -> Scores:
        """Return the scores of rows.

        Args:
            texts: prompts, padded on either side, or packed to be scored.
            cache: of what all packed prompts of an evaluation begin with.
        """
        if isinstance(texts, Packed):
            logits = self.packed.logits(texts, cache).unflatten(0, (texts.rows, -1))
        else:
            logits = self._scored(texts)
        likely = logits.float().log_softmax(-1)
        tree = self.tree
        tokens = likely[:, tree.columns, tree.tokens]  # (rows, tokens of all labels)
        labels = torch.zeros(len(tokens), len(tree.word_lengths), device=tokens.device)
        labels.index_add_(1, tree.labels, tokens)
        outside = (1 - labels.exp().sum(-1)).clamp(min=0)
        first = likely[:, 0].argmax(-1)
        irregular = ~torch.isin(first, tree.tokens[tree.columns == 0])
        return Scores(labels / tree.word_lengths if self.normalize else labels, outside, first, irregular)

    def losses(self, texts: Texts, targets: Tensor) -> Tensor:
        """Return the loss of each row, shape (rows,), as `task.loss` says: a mean over the tokens it learns from.

        Args:
            texts: prompts, padded on either side, or packed to be learned.
            targets: class indices, shape (rows,).
        """
        if self.loss is AnswerLoss.label_words:
            return nn.functional.cross_entropy(self.choices(texts), targets, reduction="none")
        if isinstance(texts, Packed):
            return self._learned(texts)
        ids, mask = align_right(texts)
        width, longest = ids.shape[1], self.answers.ids.shape[1]
        ids = torch.cat([ids, self.answers.ids[targets]], 1)
        mask = torch.cat([mask, self.answers.mask[targets]], 1)
        first = 0 if self.loss is AnswerLoss.full else width - 1
        keep = torch.arange(first, width + longest - 1, device=ids.device)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._logits(ids[:, :-1], mask[:, :-1], position[:, :-1], keep)
        losses = nn.functional.cross_entropy(logits.float().mT, ids[:, first + 1 :], reduction="none")
        learned = mask[:, first + 1 :] * mask[:, first:-1]  # a token that another one predicts
        return (losses * learned).sum(1) / learned.sum(1)

    def generate(self, texts: Texts) -> Tensor:
        """Return the tokens of greedy answers, shape (rows, `max_answer_tokens`), padded."""
        from transformers import GenerationConfig

        ids, mask = align_right(self._unpacked(texts) if isinstance(texts, Packed) else texts)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_answer_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=self.end[-1:] or None,
        )
        if has_virtual_tokens(self.model):
            return self._written(ids, mask)
        model = base_of(self.model)
        together = is_sharded(model)  # all processes write as many tokens, as each of them needs the others' shards
        out = model.generate(ids, attention_mask=mask, generation_config=settings, use_cache=True, synced_gpus=together)
        new: Tensor = out[:, ids.shape[1] :]
        return nn.functional.pad(new, (0, self.max_answer_tokens - new.shape[1]), value=self.pad_id)

    def choices(self, texts: Texts) -> Tensor:
        """Return logits of the labels whose softmax is the choice among them, shape (rows, labels).

        With a token for each label all that is left of the vocabulary are their rows of the output matrix: the rest
        cancels out.
        """
        head: Any = base_of(self.model).get_output_embeddings()
        if len(self.tree.branch_tokens) or not isinstance(texts, Packed) or is_sharded(self.model):
            scored = self(texts)
            return scored.logits  # type: ignore[no-any-return]
        bias = None if head.bias is None else head.bias[self.tree.tokens].float()
        hidden = self.packed.hidden(texts).float()
        with torch.autocast(hidden.device.type, enabled=False):
            products = nn.functional.linear(hidden, head.weight[self.tree.tokens].float(), bias)
        return final_logits(self.model, products)

    def _learned(self, texts: Packed) -> Tensor:
        """Return the mean loss of each packed row over the tokens it learns."""
        assert texts.learned is not None
        reads, tokens, rows = texts.learned
        logits = self.packed.logits(texts).float()
        likely = logits[reads, tokens] - logits.logsumexp(-1)[reads]
        sums = likely.new_zeros(2, texts.rows).index_add_(1, rows, torch.stack([-likely, torch.ones_like(likely)]))
        return sums[0] / sums[1]

    def _scored(self, texts: Padded) -> Tensor:
        """Return the logits at the end of each padded prompt and behind it, shape (rows, 1 + branch, vocabulary)."""
        ids, mask = align_right(texts)
        rows, width = ids.shape
        extra = len(self.tree.branch_tokens)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        if extra:
            ids = torch.cat([ids, self.tree.branch_tokens.expand(rows, -1)], 1)
            position = torch.cat([position, mask.sum(1, keepdim=True) + self.tree.branch_depths], 1)
            mask = self._branching(mask)
        return self._logits(ids, mask, position, torch.arange(width - 1, width + extra, device=ids.device))

    def _unpacked(self, texts: Packed) -> Padded:
        """Return the prompts of rows that are packed to be scored, padded."""
        lengths = texts.starts.diff() - len(self.tree.branch_tokens)
        prefix = texts.ids[: texts.prefix].expand(texts.rows, -1)
        column = torch.arange(texts.grid.shape[1], device=texts.ids.device)
        mask = torch.cat([torch.ones_like(prefix), (column < lengths[:, None]).long()], 1)
        return Padded(torch.cat([prefix, texts.ids[texts.grid]], 1), mask)

    def _logits(self, ids: Tensor, mask: Tensor, position: Tensor, keep: Tensor) -> Tensor:
        """Return the logits over the vocabulary at the columns `keep`: no others are computed."""
        inputs = inputs_of(self.model, ids, mask, position)
        out = base_of(self.model)(**inputs.options, logits_to_keep=keep + inputs.ahead, use_cache=False)
        return out.logits  # type: ignore[no-any-return]

    def _branching(self, mask: Tensor) -> Tensor:
        """Return the additive attention mask, shape (rows, 1, columns, columns), of prompts and label branches."""
        rows, width = mask.shape
        columns = width + len(self.tree.branch_tokens)
        seen = torch.ones(columns, columns, dtype=torch.bool, device=mask.device).tril()
        seen[width:, width:] &= self.tree.branch_labels[:, None] == self.tree.branch_labels
        keys = nn.functional.pad(mask.bool(), (0, columns - width), value=True)
        seen = seen & keys[:, None, None, :] | torch.eye(columns, dtype=torch.bool, device=mask.device)
        dtype = base_of(self.model).dtype
        return torch.zeros(rows, 1, columns, columns, dtype=dtype, device=mask.device).masked_fill_(
            ~seen, torch.finfo(dtype).min
        )

    def _written(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return greedy answers to prompts that are padded on the left, each token by a pass of its own."""
        written = ids[:, :0]
        ended = torch.zeros_like(mask[:, 0], dtype=torch.bool)
        for _ in range(self.max_answer_tokens):
            last = torch.tensor([ids.shape[1] - 1], device=ids.device)
            tokens = self._logits(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), last)[:, 0].argmax(-1)
            tokens = tokens.masked_fill(ended, self.pad_id)[:, None]
            ended = ended | (tokens[:, 0] == (self.end[-1] if self.end else -1))
            written, ids = torch.cat([written, tokens], 1), torch.cat([ids, tokens], 1)
            mask = torch.cat([mask, torch.ones_like(tokens)], 1)
        return written


class _TreeTensors(nn.Module):
    """An `AnswerTree` as tensors that move with the model and are not saved with it."""

    tokens: Tensor
    labels: Tensor
    columns: Tensor
    word_lengths: Tensor
    branch_tokens: Tensor
    branch_labels: Tensor
    branch_depths: Tensor

    def __init__(self, tree: AnswerTree) -> None:
        super().__init__()
        for name, values in asdict(tree).items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)


class _AnswerTensors(nn.Module):
    """Answers with their ends, padded on the right, shape (labels, longest), for training on padded rows."""

    ids: Tensor
    mask: Tensor

    def __init__(self, answers: list[list[int]], pad_id: int) -> None:
        super().__init__()
        padded = pad(answers, pad_id, "right")
        self.register_buffer("ids", padded.ids, persistent=False)
        self.register_buffer("mask", padded.mask, persistent=False)


def align_right(texts: Padded) -> Padded:
    """Return rows with all padding on the left, so that every prompt ends in the last column."""
    order = texts.mask.argsort(dim=1, stable=True)
    return Padded(texts.ids.gather(1, order), texts.mask.gather(1, order))


def label_prior(logits: Tensor) -> Tensor:
    """Return the mean probability of each label over rows of logits, shape (classes,)."""
    return logits.softmax(-1).mean(0)


def without_prior(logits: Tensor, prior: Tensor) -> Tensor:
    """Return logits whose probabilities are divided by a prior and normalised again (Zhao et al. 2021, with W =
    diag(prior)^-1 and b = 0; Zhou et al. 2023, eq. 2).

    Args:
        logits: shape (rows, classes).
        prior: of the labels, shape (classes,).
    """  # noqa: D205
    return logits - prior.clamp(min=torch.finfo(prior.dtype).tiny).log()


def _multiply_in_float32(head: Any) -> None:
    """Let the output matrix multiply in float32 where no gradient is wanted: bfloat16 logits tie too many rows.

    It goes block by block over the vocabulary, so that no float32 copy of the whole matrix is made.
    """
    if getattr(head, "multiplies_in_float32", False):  # another scorer over the same model
        return
    plain = head.forward

    def forward(self: Any, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return plain(hidden)  # type: ignore[no-any-return]
        with torch.autocast(hidden.device.type, enabled=False):
            parts = [nn.functional.linear(hidden.float(), rows.float()) for rows in self.weight.split(VOCABULARY_BLOCK)]
            logits = torch.cat(parts, -1)
            return logits if self.bias is None else logits + self.bias

    head.forward = MethodType(forward, head)
    head.multiplies_in_float32 = True
