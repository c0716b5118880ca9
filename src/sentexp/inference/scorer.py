"""A finished run as a scorer: texts in, what the run would have said of them out, without padding where it can be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sentexp.config import Precision
from sentexp.data.batch import Texts, move, pad
from sentexp.data.prompts import pair_separator
from sentexp.data.text_parts import shorten
from sentexp.data.tokens import WORTH_SHARING, encode, row_limit
from sentexp.errors import UserError
from sentexp.models.cuda_graphs import ScoringGraphs
from sentexp.models.encoder_classifier import classifier_over
from sentexp.models.fast.padding_free import packer_for
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.label_scorer import LabelScorer, without_prior
from sentexp.models.links import link_of, said
from sentexp.models.loading import DTYPES
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import Trained, find_base, load_trained, scoring_task
from sentexp.models.sequence_classifier import Scores, SequenceClassifier
from sentexp.models.structure import base_of
from sentexp.models.virtual_tokens import has_virtual_tokens
from sentexp.system.console import waiting
from sentexp.system.device import choose_device, choose_precision
from sentexp.system.garbage import nothing_collected
from sentexp.system.memory import is_out_of_memory, limit_kernel_caches, release_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 4096
"""Of a batch, padding counted: enough to fill two cores, little enough for any memory."""
CHARACTERS = 64
"""Characters that are looked at for each token of the limit: more than the tokens of a text ever have."""
AT_ONCE = 1 << 20
"""Characters that are tokenised at one time."""


class Scorer:
    """Scores texts as the run has scored its test rows.

    Args:
        trained: the weights of the run.
        base: where the base model is now, if it has moved; or the base model itself.
        accelerator: auto, cpu or gpu.
        max_tokens: of a batch.
        precision: arithmetic; None is that of the run, as far as the device has it.
        loaded: model and tokenizer, where they are in memory already.

    Raises:
        UserError: the base is no longer there or another one, or weights do not fit.
    """

    def __init__(
        self,
        trained: Trained,
        base: str | Backbone | None = None,
        accelerator: str = "auto",
        max_tokens: int = MAX_TOKENS,
        precision: Precision | None = None,
        loaded: "tuple[nn.Module, PreTrainedTokenizerBase] | None" = None,
    ) -> None:
        self.trained, self.max_tokens = trained, max_tokens
        self.device = choose_device(accelerator, "accelerator")
        limit_kernel_caches()
        halved = trained.precision is Precision.fp16 and self.device.type != "cuda"
        best = Precision.fp32 if halved else choose_precision(trained.precision, self.device)
        self.precision = precision or best
        if loaded is None:
            with waiting("Loading the model"), nothing_collected():
                backbone = base if isinstance(base, Backbone) else find_base(trained, base)
                loaded = load_trained(trained, backbone, self.precision, self.device)
        model, self.tokenizer = loaded
        self.limit, _ = row_limit(self.tokenizer, trained.prompt, trained.max_length, trained.positions)
        prompt, pad_id = trained.prompt, self.tokenizer.pad_token_id
        self.packer = None if has_virtual_tokens(model) else packer_for(base_of(model).config.model_type, prompt)
        self.classifier: SequenceClassifier | LabelScorer = (
            LabelScorer(model, prompt.answers, prompt.end, scoring_task(trained), pad_id, prompt.max_answer_tokens)
            if trained.answers
            else classifier_over(
                model, separator=pair_separator(prompt, self.tokenizer), link=link_of(trained.loss, trained.scale)
            )
        ).train(False)
        records = self.device.type == "cuda" and self.packer is not None and self.packer.causal
        self.graphs = ScoringGraphs(self.classifier) if records else None
        for name, value in self.classifier.named_buffers(recurse=False):  # the model is there, perhaps quantised
            setattr(self.classifier, name, value.to(self.device))

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the probabilities."""
        return self.trained.labels

    def probabilities(self, texts: Sequence[str], calibrated: bool = False) -> NDArray[Any]:
        """Return float32 probabilities, shape (texts, labels); see `probabilities_of` and `score`."""
        return self.probabilities_of(self.score(texts), calibrated)

    def probabilities_of(self, scores: Scores, calibrated: bool = False) -> NDArray[Any]:
        """Return the probabilities of scores; calibrated ones are those at the temperature that the run has fitted.

        Where the run predicts scores, these are returned, shape (texts, 1).
        """
        return said(self.trained.kind, scores.logits / self.trained.temperature if calibrated else scores.logits)

    def score(self, texts: Sequence[str], done: Callable[[int], object] = lambda _: None) -> Scores:
        """Return the scores of texts, none of them empty, in their order and on the CPU, the prior divided out.

        Inside, texts of like length are read together.

        Args:
            texts: as the run's were: without surrounding blanks, if it removed them.
            done: is called with the rows of each batch.
        """
        if not texts:
            return Scores(torch.zeros(0, len(self.labels)))
        rows = self._encode(texts)
        prefix, beginning = _shared(rows) if self.packer is not None else 0, PrefixCache()
        parts, order = [], []
        for numbers in batches([len(row) for row in rows], self.max_tokens):
            parts += self._read([rows[number] for number in numbers], prefix, beginning)
            order += numbers
            done(len(numbers))
        back = torch.tensor(order).argsort()
        columns = zip(*parts, strict=True)
        ordered: list[Any] = [None if column[0] is None else torch.cat(column)[back] for column in columns]
        scores = Scores(*ordered)
        if self.trained.prior is None:
            return scores
        return scores._replace(logits=without_prior(scores.logits, torch.tensor(self.trained.prior)))

    def whole(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are read whole, none of their tokens cut."""
        return [text for text, row in zip(texts, self._encode(texts), strict=True) if len(row) < self.limit]

    def _read(self, rows: list[list[int]], prefix: int, beginning: PrefixCache) -> list[tuple[Tensor | None, ...]]:
        """Return the scores of a batch, in halves where it does not fit into memory."""
        try:
            with torch.inference_mode(), self._arithmetic():
                score = self.classifier if self.graphs is None else self.graphs
                scores = score(move(self._layout(rows, prefix), self.device), beginning)
                return [tuple(None if part is None else part[: len(rows)].cpu() for part in scores)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        beginning.layers.clear()  # of some layers only
        release_memory()
        if len(rows) == 1:
            raise UserError(
                f"Out of memory for a single text of {len(rows[0])} tokens: use accelerator=cpu, or another machine."
            )
        half = len(rows) // 2
        return [part for piece in (rows[:half], rows[half:]) for part in self._read(piece, prefix, beginning)]

    def _layout(self, rows: list[list[int]], prefix: int) -> Texts:
        if self.packer is None:
            return pad(rows, int(self.tokenizer.pad_token_id), "right")
        filler = [] if self.graphs is None else self.packer.filler(rows, None, prefix)
        return self.packer.score([*rows, *filler], prefix)

    def _arithmetic(self) -> Any:
        """Return Lightning's mixed precision, in which the run was tested."""
        if self.precision is Precision.fp32:
            return nullcontext()
        # a recorded pass must not read what another has cast
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision], cache_enabled=self.graphs is None)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text in its frame, cut as in the run."""
        rows: list[list[int]] = []
        for piece in _by_characters([shorten(text, CHARACTERS * self.limit) for text in texts]):
            start = len(rows)
            ids, lengths = encode(piece, self.tokenizer, self.trained.prompt, self.limit)
            rows += ids
            for number, length in enumerate(lengths):  # tokens of many characters, rows of blanks for instance
                text = texts[start + number]
                if length < self.limit and len(piece[number]) < len(text):
                    rows[start + number] = encode([text], self.tokenizer, self.trained.prompt, self.limit)[0][0]
        return rows


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield row numbers from short to long, as many at a time as have at most `max_tokens` when padded; one at least.

    Args:
        lengths: tokens of each row.
        max_tokens: of a batch.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if batch and (len(batch) + 1) * lengths[row] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _shared(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with, each keeping one of its own, where that is worth sharing."""
    first, last = min(rows), max(rows)  # what these two share, all share
    most = min(map(len, rows)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return same if same >= WORTH_SHARING else 0


def _by_characters(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in pieces of about `AT_ONCE` characters."""
    piece: list[str] = []
    size = 0
    for text in texts:
        if piece and size + len(text) > AT_ONCE:
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    if piece:
        yield piece
