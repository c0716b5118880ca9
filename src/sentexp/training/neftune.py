"""NEFTune: noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914, algorithm 1)."""

from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sentexp.data.packing import Packed
from sentexp.models.structure import base_of
from sentexp.training.module import ClassifierModule


def embedding_noise(model: nn.Module, alpha: float) -> list[L.Callback]:
    """Return the callback of `task.neftune_alpha`; 0 needs none."""
    return [EmbeddingNoise(model, alpha)] if alpha else []


class EmbeddingNoise(L.Callback):
    """Adds alpha / sqrt(L d) times uniform noise in [-1, 1] to embeddings of width d, in rows of L tokens.

    Padding does not count in L, so that padded and packed rows have noise of the same size. It is drawn as dropout is:
    by seed, micro-batch and process.

    Args:
        model: transformers' model, wrapped by PEFT or not.
        alpha: the size.
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        self.base, self.alpha = base_of(model), alpha
        self._lengths: Tensor
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the rows that the model reads, and its embeddings."""
        del trainer
        assert isinstance(pl_module, ClassifierModule)
        pl_module.classifier.packed.before_training_pass = self.read
        self._handles = [
            self.base.base_model.register_forward_pre_hook(self._read_options, with_kwargs=True),
            self.base.get_input_embeddings().register_forward_hook(self._add),
        ]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the model as it was."""
        del trainer
        assert isinstance(pl_module, ClassifierModule)
        pl_module.classifier.packed.before_training_pass = None
        for handle in self._handles:
            handle.remove()

    def read(self, packed: Packed) -> None:
        """Note the length of the row of each token, shape (tokens, 1)."""
        lengths = packed.starts.diff().long()
        self._lengths = lengths.repeat_interleave(lengths, output_size=len(packed.ids))[:, None]

    def _read_options(self, backbone: nn.Module, _: Any, options: dict[str, Any]) -> None:
        """Note the lengths of rows, shape (rows, 1, 1), from what transformers' model is called with."""
        if not backbone.training:
            return
        if "packed" in options:
            self.read(options["packed"])
            return
        mask: Tensor = options["attention_mask"]
        if mask.dim() == 2:  # noqa: PLR2004 (else rows with label branches, whose positions count from 0)
            self._lengths = mask.sum(1)[:, None, None]
        else:
            self._lengths = options["position_ids"].amax(1)[:, None, None] + 1

    def _add(self, table: nn.Module, _: Any, embeddings: Tensor) -> Tensor:
        if not table.training:
            return embeddings
        size = self.alpha / (self._lengths * embeddings.shape[-1]).sqrt()
        noise = torch.empty_like(embeddings, dtype=torch.float32).uniform_(-1, 1)
        return embeddings + (size * noise).to(embeddings.dtype)
