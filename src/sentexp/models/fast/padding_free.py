"""Running a backbone over packed rows: the Llama family through layers of our own, others through transformers'."""

from typing import Any

import torch
from torch import Tensor, nn

from sentexp.data.packing import Packed
from sentexp.distributed.sharding import is_sharded
from sentexp.models.backbone import base_of
from sentexp.models.fast.attention import PrefixCache, use_packed_attention, within
from sentexp.models.fast.llama import LlamaLayers, Reading, fits
from sentexp.models.fast.multi_run import Part, finish, in_company, read

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3")
"""Model types whose rows can be packed: each was compared with its padded rows in the tests."""


class PackedModel:
    """A model that reads packed rows.

    Args:
        model: transformers' model, with its adapter where it has one.
        compiled: let torch.compile make the code of the layers that are ours, in training.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        self.model = model
        self.compiled = compiled
        self._layers: LlamaLayers | None = None
        self._parts: list[Part] = []
        self._ours: bool | None = None

    def hidden(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the hidden states that are read, shape (read, hidden)."""
        if self.takes_apart(packed):
            return self._read(packed, cache)
        packed = within(packed, cache)
        states: Tensor = _run(base_of(self.model).base_model, packed, cache).last_hidden_state[0]
        return states.index_select(0, packed.read)

    def logits(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the logits over the vocabulary at the tokens that are read, shape (read, vocabulary)."""
        base = base_of(self.model)
        if self.takes_apart(packed):
            out: Tensor = base.get_output_embeddings()(self._read(packed, cache))
            return out
        packed = within(packed, cache)
        found: Tensor = _run(base, packed, cache, logits_to_keep=packed.read).logits[0]
        return found

    def finish(self) -> None:
        """After the backward pass of a loss: let what runs have read together have its gradients (see `together`)."""
        for part in self._parts:
            finish(part)
        self._parts.clear()

    def _read(self, packed: Packed, cache: PrefixCache | None) -> Tensor:
        """Return the hidden states that are read by layers of our own."""
        found = read(Reading(self._own(), packed, cache, torch.initial_seed() if in_company() else None))
        if isinstance(found, Tensor):
            return found
        self._parts.append(found)
        return found.leaf

    def takes_apart(self, packed: Packed) -> bool:
        """Tell whether these rows go through layers of our own, which have no dropout but that of adapters."""
        backbone = base_of(self.model).base_model
        longest = packed.prefix + packed.grid.shape[1]
        if self._ours is None:
            self._ours = not is_sharded(self.model) and fits(backbone, longest)
        window = getattr(backbone.config, "sliding_window", None)
        return self._ours and (window is None or longest <= window)

    def _own(self) -> LlamaLayers:
        if self._layers is None:
            self._layers = LlamaLayers(base_of(self.model).base_model, self.compiled)
        return self._layers


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
