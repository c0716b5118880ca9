"""One forward pass for several runs over the same frozen weights: `LlamaLayers.__call__`, but over the rows of all.

The tokens of the runs are one after the other. Products with frozen weights are over all of them at once; adapters and
attention are each run's own. Below the first layer that any run adapts, rows that several runs read are computed once,
and may be kept for the next time (see `row_cache`):

    tokens      | run 0 | run 1 | run 2 |        runs 0 and 2 read the same rows
    layers 0..k | run 0 | run 1 |                no adapter yet: their states are the same as well
    layers k..  | run 0 | run 1 | run 2 |        each with its own adapter
    read        | r0 | r1 | r2 |                 the last layer's feed-forward part and the norm
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sentexp.data.packing import Packed
from sentexp.models.fast.attention import attend, join
from sentexp.models.fast.batched_lora import AdapterStack
from sentexp.models.fast.decoder_layer import Layer, Rotary, feed_forward, project
from sentexp.models.fast.fused_lora_linear import fused_lora_linear
from sentexp.models.fast.llama import LlamaLayers
from sentexp.models.fast.prefix_cache import PrefixCache, PrefixKV, within

Generators = Sequence[torch.Generator | None]
"""Of the dropout masks of each run; None is torch's own."""


class ForwardInput(NamedTuple):
    """What one of several runs over the same frozen weights reads.

    `seed` is that of its dropout masks; None continues with the generator `dropout`, or with torch's own.
    """

    layers: LlamaLayers
    packed: Packed
    cache: PrefixCache | None = None
    seed: int | None = None
    dropout: torch.Generator | None = None

    @property
    def generator(self) -> torch.Generator | None:
        """What draws the dropout masks: a new generator of the seed, where there is one."""
        return self.dropout if self.seed is None else torch.Generator(self.packed.ids.device).manual_seed(self.seed)


def fused_forward(
    inputs: Sequence[ForwardInput], stack: AdapterStack | None = None, *, as_one: bool = False
) -> tuple[Tensor, ...]:
    """Return the hidden states that each run reads, after the last norm, shape (read, hidden).

    The gradients are separate as well: nothing of one run enters those of another.

    Args:
        inputs: of runs whose backbones are the same weights, all in training or none.
        stack: of their adapters, which are then batched where each run has as many tokens as the others.
        as_one: what is computed depends on the shapes of the rows alone, as a CUDA graph needs it: none are looked at
            for being the same, and all are attended to at once, where that is possible.
    """
    layers = inputs[0].layers
    count = len(layers.groups)
    shared_layers = min(count - 1, *(one.layers.unadapted for one in inputs))
    known = 0 if as_one else min(one.layers.known for one in inputs)
    if known:  # the prefix is kept with the rows
        inputs = [one._replace(cache=None) for one in inputs]
    rows = FusedRows.of([within(one.packed, one.cache) for one in inputs], [[one.cache] for one in inputs])
    leaders = rows.leaders() if shared_layers and not as_one else list(range(len(inputs)))
    distinct = rows.only(leaders)
    with torch.autocast(rows.packed[0].ids.device.type, enabled=False):
        generators = [one.generator for one in inputs]
        adapters = _convert(inputs, rows, stack, generators)
        hidden = torch.cat([layers.states_before(known, part) for part in distinct.packed])
        hidden = _run(layers, range(known, shared_layers), hidden, distinct, [], [])
        hidden = distinct.repeated(hidden, leaders)
        rows = rows.with_joined(layers) if as_one else rows
        hidden = _run(layers, range(shared_layers, count), hidden, rows, adapters, generators)
        hidden = layers.last_norm(hidden)
    return tuple(hidden[span] for span in rows.read_spans)


def _convert(
    inputs: Sequence[ForwardInput], rows: "FusedRows", stack: AdapterStack | None, generators: Generators
) -> list[list[Any]]:
    """Return the adapters of all groups of all layers: a list for each run, or one of batched ones for all of them."""
    training = inputs[0].layers.backbone.training
    if stack is None or not rows.are_alike:
        pairs = zip(inputs, generators, strict=True)
        return [one.layers.adapters.convert(training, generator) for one, generator in pairs]
    return [stack.convert(training, generators)]


class FusedRows(NamedTuple):
    """The rows of several runs: those of each, their tokens, and the caches that keep their prefixes.

    `joined` are all rows as those of one run, where one kernel can attend to them.
    """

    packed: list[Packed]
    spans: list[slice]
    caches: list[list[PrefixCache | None]]
    joined: Packed | None = None

    @classmethod
    def of(cls, packed: list[Packed], caches: list[list[PrefixCache | None]]) -> "FusedRows":
        """Return rows one after the other."""
        return cls(packed, _spans([len(part.ids) for part in packed]), caches)

    def with_joined(self, layers: LlamaLayers) -> "FusedRows":
        """Return the same with all rows as those of one run, where these layers can attend to them so."""
        return self._replace(joined=join(self.packed, layers.dtype, layers.head_size))

    @property
    def are_alike(self) -> bool:
        """Whether each run has as many tokens as the others, and as many that are read."""
        return len({(len(part.ids), len(part.read)) for part in self.packed}) == 1

    def leaders(self) -> list[int]:
        """Return for the rows of each run the number of the first run that reads the same ones, in the same order."""
        return [
            next(number for number, other in enumerate(self.packed) if _is_alike(part, other)) for part in self.packed
        ]

    def only(self, leaders: list[int]) -> "FusedRows":
        """Return the rows of the leaders alone, which fill the caches of all that read the same."""
        caches: dict[int, list[PrefixCache | None]] = {leader: [] for leader in sorted(set(leaders))}
        for leader, of_run in zip(leaders, self.caches, strict=True):
            caches[leader] += of_run
        return FusedRows.of([self.packed[leader] for leader in caches], list(caches.values()))

    def repeated(self, hidden: Tensor, leaders: list[int]) -> Tensor:
        """Return the states of the rows of every run, where these are those of the leaders alone."""
        if len(self.packed) == len(leaders):
            return hidden
        states = dict(zip(sorted(set(leaders)), (hidden[span] for span in self.spans), strict=True))
        return torch.cat([states[leader] for leader in leaders])

    @property
    def read(self) -> Tensor:
        """The tokens whose hidden states are wanted, shape (read,)."""
        return torch.cat([part.read + span.start for part, span in zip(self.packed, self.spans, strict=True)])

    @property
    def read_spans(self) -> list[slice]:
        """Those of each run among the tokens that are read."""
        return _spans([len(part.read) for part in self.packed])

    def prefix_kv(self, run: int, number: int, key: Tensor, value: Tensor) -> PrefixKV | None:
        """Return the cached prefix of a run's rows at a layer; the first batch fills the caches of all its readers."""
        cache, *others = self.caches[run]
        prefix = self.packed[run].prefix
        if cache is None or not prefix:
            return None
        cached = cache.get(number, key, value, prefix)
        for other in others:
            if other is not None:
                other.layers[number] = cache.layers[number]
        return cached


def _is_alike(packed: Packed, other: Packed) -> bool:
    return packed is other or (
        packed.prefix == other.prefix
        and torch.equal(packed.ids, other.ids)
        and torch.equal(packed.positions, other.positions)
        and torch.equal(packed.grid, other.grid)
        and torch.equal(packed.bias, other.bias)
    )


def _spans(lengths: Sequence[int]) -> list[slice]:
    """Return consecutive slices of these lengths."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _run(
    layers: LlamaLayers,
    numbers: range,
    hidden: Tensor,
    rows: FusedRows,
    adapters: list[list[Any]],
    generators: Generators,
) -> Tensor:
    """Return the hidden states after some layers.

    Args:
        layers: of any of the runs.
        numbers: of the layers.
        hidden: states before them, shape (tokens, hidden).
        rows: of the runs.
        adapters: see `_convert`; empty where no layer has any.
        generators: of their dropout masks.
    """
    as_before = partial(_drawn_again, generators)
    rotary = layers.rotary(torch.cat([part.positions for part in rows.packed]), hidden)
    for number in numbers:
        is_last = number == len(layers.groups) - 1
        layer = _layer(layers, number, rows, adapters)
        read = rows.read if is_last else None
        if not layers.trains:
            hidden = fused_layer(hidden, layer, rotary[number], rows, read, number)
        elif layers.recomputes(number):
            given = hidden, layer, rotary[number], rows, read
            hidden = checkpoint(fused_layer, *given, use_reentrant=False, context_fn=as_before)
        else:
            hidden = fused_layer(hidden, layer, rotary[number], rows, read)
    return hidden


def _drawn_again(generators: Generators) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts for a layer and for its second computation, in which generators draw what they drew in the first.

    PyTorch itself does so with its own generator alone.
    """
    before = [None if generator is None else generator.get_state() for generator in generators]

    @contextmanager
    def again() -> Iterator[None]:
        now = [None if generator is None else generator.get_state() for generator in generators]
        _set_states(generators, before)
        try:
            yield
        finally:
            _set_states(generators, now)

    return nullcontext(), again()


def _set_states(generators: Generators, states: Sequence[Tensor | None]) -> None:
    for generator, state in zip(generators, states, strict=True):
        if generator is not None and state is not None:
            generator.set_state(state)


def _layer(layers: LlamaLayers, number: int, rows: FusedRows, adapters: list[list[Any]]) -> Layer:
    """Return what a layer computes with, the adapters of each run over its own tokens."""
    tokens = [rows.spans] * len(layers.groups[number])
    if number == len(layers.groups) - 1:  # behind attention, only the tokens that are read remain
        tokens = [rows.spans, *[rows.read_spans] * (len(tokens) - 1)]
    of_runs = [layers.of_layer(number, of_run) for of_run in adapters]
    by_group: list[list[Any]] = []
    for group, spans in enumerate(tokens):
        of_group = zip((of_run[group] for of_run in of_runs), spans, strict=False)  # no runs below the first adapter
        by_group.append([adapter.over(span) for adapter, span in of_group if adapter is not None])
    return layers.layer(number, by_group)


def fused_layer(
    hidden: Tensor, layer: Layer, rotary: Rotary, rows: FusedRows, read: Tensor | None, number: int | None = None
) -> Tensor:
    """Return the hidden states after a layer: `decoder_layer`, but each run attends over its own rows.

    Args:
        hidden: states before it, shape (tokens, hidden).
        layer: what it computes with.
        rotary: of the positions.
        rows: of the runs.
        read: in the last layer, the tokens that are read: only their states are returned.
        number: of the layer, in the caches of an evaluation; None in training.
    """
    query, key, value = project(hidden, layer, rotary, fused_lora_linear)
    if rows.joined is not None:
        attended = attend(query, key, value, rows.joined, layer.scale)
        return feed_forward(hidden, attended, layer, read, fused_lora_linear)
    parts = []
    for run, (packed, span) in enumerate(zip(rows.packed, rows.spans, strict=True)):
        prefix_kv = None if number is None else rows.prefix_kv(run, number, key[span], value[span])
        parts.append(attend(query[span], key[span], value[span], packed, layer.scale, prefix_kv=prefix_kv))
    return feed_forward(hidden, torch.cat(parts), layer, read, fused_lora_linear)
