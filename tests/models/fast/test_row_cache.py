"""Rows whose states are kept: what is computed of them stays the same, and each is read once."""

import pytest
import torch
from rounding import agree
from transformers import LlamaConfig, LlamaForSequenceClassification

from sentexp.config import load_config
from sentexp.data.packing import Packer
from sentexp.models.adapters import attach
from sentexp.models.fast import row_cache
from sentexp.models.fast.fused_forward import ForwardInput, fused_forward
from sentexp.models.fast.llama import LlamaLayers
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.fast.row_cache import RowCache
from sentexp.models.loading import clone_sharing_weights
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.run import build
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.resolve import resolve_config

ROWS = [[5, 6, 7, 20, 21], [5, 6, 7, 22], [5, 6, 7, 20, 21], [5, 6, 7, 23, 24, 25, 26]]
"""The first and the third are the same."""
TARGETS = torch.tensor([0, 1, 1, 0])


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_labels=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(shape)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.2)
    return model.requires_grad_(False)


def adapted(base, layers, cache, seed=1):
    """Return a classifier that adapts these layers."""
    words = ("peft=lora", "peft.r=3", "peft.dropout=0", f"peft.layers_to_transform={layers}")
    trained, _ = attach(clone_sharing_weights(base), load_config(*words).peft)
    torch.manual_seed(seed)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    return SequenceClassifier(trained, row_cache=cache).eval()


@pytest.fixture
def read(monkeypatch):
    """Return a list of how many rows went through the lower layers, each time."""
    counts, original = [], LlamaLayers._states_before

    def states(self, number, packed):
        if number:
            counts.append(packed.rows)
        return original(self, number, packed)

    monkeypatch.setattr(LlamaLayers, "_states_before", states)
    return counts


def learned(classifier, packed):
    """Return losses and gradients of rows."""
    classifier.train().zero_grad()
    losses = classifier.losses(packed, TARGETS)
    losses.sum().backward()
    classifier.eval()
    gradients = {name: part.grad for name, part in classifier.named_parameters() if part.grad is not None}
    return {"loss": losses.detach()} | gradients


def said(classifier, packed, cache=None):
    with torch.no_grad():
        return {"logits": classifier(packed, cache).logits}


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("layers", ["[2]", "[1,2]"])
def test_what_is_computed_of_rows_stays_the_same(base, layers, prefix, read):
    kept, plain = adapted(base, layers, RowCache()), adapted(base, layers, None)
    packed, cache = Packer().train(ROWS, TARGETS.tolist(), prefix), PrefixCache()
    for _ in range(2):
        agree(learned(kept, packed), learned(plain, packed))
        agree(said(kept, packed, cache), said(plain, packed))
    assert read == [3]


def test_rows_are_kept_by_their_tokens(base, read):
    kept, plain = adapted(base, "[2]", RowCache()), adapted(base, "[2]", None)
    for rows in (ROWS[:2], ROWS[1:], ROWS[::-1]):
        packed = Packer().score(rows, 0)
        agree(said(kept, packed), said(plain, packed))
    assert read == [2, 1]


def test_states_that_were_made_for_an_evaluation_can_be_trained_on(base):
    kept, plain = adapted(base, "[2]", RowCache()), adapted(base, "[2]", None)
    packed = Packer().score(ROWS, 0)
    with torch.inference_mode():
        kept(packed)
    agree(learned(kept, packed), learned(plain, packed))


def test_what_does_not_fit_is_read_again(base, read, monkeypatch):
    monkeypatch.setattr(row_cache, "MOST", 1)
    kept, plain = adapted(base, "[2]", RowCache()), adapted(base, "[2]", None)
    for rows in (ROWS[:1], ROWS[1:2], ROWS[:2]):
        packed = Packer().score(rows, 0)
        agree(said(kept, packed), said(plain, packed))
    assert read == [1, 1, 1]


def test_runs_share_what_is_below_the_adapters_of_both(base, read):
    cache = RowCache()
    kept = [adapted(base, layers, cache, seed) for seed, layers in enumerate(["[2]", "[1,2]"])]
    plain = [adapted(base, layers, None, seed) for seed, layers in enumerate(["[2]", "[1,2]"])]
    packed = [Packer().score(rows, 3) for rows in (ROWS, ROWS[:3])]
    caches = [[PrefixCache(), PrefixCache()] for _ in range(2)]
    for _ in range(2):
        both = []
        for runs, own in zip((kept, plain), caches, strict=True):
            each = zip(runs, packed, own, strict=True)
            with torch.no_grad():
                both.append(fused_forward([ForwardInput(one.packed.fast_layers, *rest) for one, *rest in each]))
        agree(dict(enumerate(both[0])), dict(enumerate(both[1])))
    assert sum(read) == 3


def test_where_every_layer_is_adapted_nothing_is_kept(base, read):
    cache = RowCache()
    said(adapted(base, "[0,2]", cache), Packer().score(ROWS, 0))
    assert not read
    assert not cache._kept


def test_noise_on_the_embeddings_is_new_in_every_pass(config):
    for alpha, kept in ((0, True), (5, False)):
        spec = resolve_inputs(resolve_config(config("peft.layers_to_transform=[1]", f"task.neftune_alpha={alpha}")))
        assert (build._row_cache(prepare_inputs(spec)) is not None) == kept
