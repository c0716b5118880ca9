"""The fast layers of encoders: what they compute is what transformers does, their dropout drops as much."""

import encoders
import pytest
import torch
from rounding import agree, rounding

from sentexp.config import Attention, Precision, load_config
from sentexp.data.batch import pad
from sentexp.data.packing import Packer
from sentexp.models.adapters import attach
from sentexp.models.encoder_classifier import classifier_over
from sentexp.models.encoders import ENCODERS
from sentexp.models.fast import dropout, encoder, encoder_layer
from sentexp.models.loading import Loading, load_classifier, load_tokenizer
from sentexp.models.pretrained import Backbone
from sentexp.models.structure import base_of

LORA = ("peft=lora", "peft.r=3", "peft.alpha=6")
ROWS = [[2, *range(40, 50), 3], [2, 9, 3], [2, *range(20, 44), 3], [2, 70, 71, 3]]
TARGETS = torch.tensor([0, 1, 2, 0])
DROPOUTS = {
    "distilbert": ("dropout", "attention_dropout"),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a function from an architecture, the words of an adapter and changes to a classifier of random weights."""

    def classifier(kind, *words, dtype=Precision.fp32, **changes):
        folder = tmp_path_factory.mktemp(kind)
        encoders.write_encoder(folder, kind, **changes)
        peft = load_config("model=tiny", *(words or LORA)).peft
        backbone = Backbone(folder=folder, revision="")
        how = Loading(
            storage=peft,
            attention=Attention.auto,
            precision=dtype,
            device=torch.device("cpu"),
            trains_backbone="peft=full" in words,
        )
        model, _ = attach(load_classifier(backbone, load_tokenizer(backbone), ["a", "b", "c"], how, None), peft)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scales = parameter.ndim == 1 and not name.endswith("bias")
                parameter.data.normal_(mean=float(scales), std=0.3)
        return classifier_over(model)

    return classifier


@pytest.fixture
def calls(monkeypatch):
    """Return a list that grows with each call of a fast layer."""
    found, original = [], encoder.encoder_layer

    def counted(*given):
        found.append(given)
        return original(*given)

    monkeypatch.setattr(encoder, "encoder_layer", counted)
    return found


def learned(classifier, texts):
    """Return the losses of rows, and the gradients of a sum that weighs each of them, by name."""
    classifier.zero_grad()
    losses = classifier.losses(texts, TARGETS)
    (losses * torch.linspace(0.5, 2, len(losses))).sum().backward()
    trained = {name: part.grad for name, part in classifier.named_parameters() if part.requires_grad}
    return {"losses": losses.detach()} | {name: grad for name, grad in trained.items() if grad is not None}


def packed():
    return Packer(causal=False).score(ROWS, 0)


@pytest.mark.parametrize(
    ("kind", "words", "is_fast"),
    [
        *((kind, LORA, kind in encoder.LAYERS) for kind in ENCODERS if ENCODERS[kind].packs),
        ("bert", ("peft=dora", "peft.r=3", "peft.alpha=6"), True),
        ("bert", ("peft=qlora", "peft.r=3", "peft.alpha=6"), True),
        ("bert", (*LORA, "peft.target_modules=[query,value]"), True),
        ("bert", (*LORA, "peft.rank_pattern={value:5}"), True),
        ("bert", (*LORA, "peft.layers_to_transform=[1]"), True),
        ("distilbert", ("peft=dora", "peft.r=3", "peft.target_modules=[k_lin,lin1]"), True),
        ("bert", (*LORA, "peft.modules_to_save=[embeddings]"), True),
        ("bert", ("peft=head",), True),
        ("bert", (*LORA, "peft.bias=all"), False),
        ("bert", (*LORA, "peft.modules_to_save=['layer.1.output.dense']"), False),
        ("bert", ("peft=ia3",), False),
        ("bert", ("peft=full",), False),
        ("mpnet", (*LORA, "peft.modules_to_save=[relative_attention_bias]"), True),
        ("mpnet", ("peft=head",), True),
        ("mpnet", ("peft=full",), False),
    ],
    ids=str,
)
def test_rows_say_and_teach_what_they_do_padded(kind, words, is_fast, build, calls):
    classifier = build(kind, *words)
    expected = learned(classifier, pad(ROWS, base_of(classifier.model).config.pad_token_id, "right"))
    agree(learned(classifier, packed()), expected, silent=True)
    assert bool(calls) == is_fast


@pytest.mark.parametrize("rows", [ROWS[1:2], [[2]], [[2, 3]] * 2, ROWS[::-1]], ids=["one", "least", "equal", "turned"])
@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_rows_of_any_shape(kind, rows, build):
    classifier = build(kind)
    with torch.no_grad():
        agree(
            {"logits": classifier(Packer(causal=False).score(rows, 0)).logits},
            {"logits": classifier(pad(rows, 1, "right")).logits},
        )


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_all_tokens_can_be_read(kind, build):
    layers, layout = encoder.EncoderLayers(base_of(build(kind).model).base_model), packed()
    with torch.no_grad():
        whole = layers(layout)
        assert len(whole) == len(layout.ids)
        for read in (layout.grid[:, 0], layout.starts[1:].long() - 1):  # the first token of each row, and the last
            agree({"states": layers(layout._replace(read=read))}, {"states": whole[read]})


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_bfloat16_is_rounded_no_more_than_by_transformers(kind, build):
    texts, exact = packed(), build(kind)
    short = build(kind, dtype=Precision.bf16)
    truth = exact(texts).logits.detach()
    errors = []
    for layout in (texts, pad(ROWS, 1 if kind == "roberta" else 0, "right")):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            errors.append(float((short(layout).logits - truth).norm() / truth.norm()))
    assert torch.finfo(torch.bfloat16).eps / 32 < errors[1]
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_elements_are_kept_by_chance(share):
    torch.manual_seed(0)
    like = torch.empty(1001, 333)
    kept = dropout.kept_at_random(like, share)
    spread = (share * (1 - share) / like.numel()) ** 0.5
    assert kept.shape == like.shape
    assert abs(float(kept.float().mean()) - (1 - share)) <= 5 * spread + 2**-16
    assert abs(dropout.scale_of(share) - 1 / (1 - share)) < 2**-14
    lanes = kept.flatten()[: like.numel() // 4 * 4].view(-1, 4).float()  # the elements that share a random number
    assert (lanes.mean(0) - (1 - share)).abs().max() <= 10 * spread + 2**-16
    if share:
        assert (torch.corrcoef(lanes.T) - torch.eye(4)).abs().max() < 5 / len(lanes) ** 0.5


def test_the_derivative_of_dropout_and_norm_is_that_of_what_was_kept():
    torch.manual_seed(0)
    norm = encoder_layer.Norm(torch.randn(6).double(), torch.randn(6).double(), 1e-3)
    states, residual = (torch.randn(5, 6).double().requires_grad_() for _ in range(2))

    def seeded(one, other):
        torch.manual_seed(7)
        return encoder_layer.add_norm(dropout.drop(one, 0.3), other, norm, 0.4)

    assert torch.autograd.gradcheck(seeded, (states, residual))
    torch.manual_seed(7)
    kept = [dropout.kept_at_random(states, share) / (1 - share) for share in (0.3, 0.4)]
    plain = torch.nn.functional.layer_norm(residual + states * kept[0] * kept[1], [6], *norm)
    torch.testing.assert_close(seeded(states, residual), plain, rtol=0, atol=2**-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DROPOUTS)
def test_as_much_is_dropped_as_by_transformers_and_nothing_in_evaluation(kind, build, calls):
    """Each dropout alone moves what the rows say by as much, on average, whichever layers compute them."""
    for name in DROPOUTS[kind]:
        classifier, texts = build(kind, **{name: 0.2}), packed()
        with torch.no_grad():
            whole = classifier.eval().features(texts)
            assert torch.equal(classifier.features(texts), whole)
            classifier.train()
            moved = {}
            for layout in (texts, pad(ROWS, 0, "right")):
                torch.manual_seed(0)
                drawn = torch.stack([classifier.features(layout) for _ in range(150)])
                moved[type(layout)] = (drawn - whole).flatten(1).norm(dim=1)
        ours, theirs = moved.values()
        noise = ((ours.var() + theirs.var()) / 150) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 5 * noise < 0.3 * theirs.mean(), name
    assert calls


@pytest.mark.parametrize("kind", DROPOUTS)
def test_the_same_seed_drops_the_same_with_and_without_checkpointing(kind, build):
    classifier = build(kind, **dict.fromkeys(DROPOUTS[kind], 0.2)).train()
    found = []
    for seed, recomputes in ((3, False), (3, True), (4, False)):
        if recomputes:
            base_of(classifier.model).activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(seed)
        found.append(learned(classifier, packed()))
        base_of(classifier.model).activation_checkpointing_disable()
    agree(found[1], found[0], silent=True)
    assert (found[2]["losses"] - found[0]["losses"]).abs().max() > 100 * rounding()


@pytest.mark.parametrize(("kind", "behind"), [("bert", (0.2, 0.2)), ("distilbert", (0.0, 0.2))])
def test_what_is_dropped_where(kind, behind, build):
    hidden, attention = DROPOUTS[kind]
    classifier = build(kind, **{hidden: 0.2, attention: 0.1})
    layers = encoder.EncoderLayers(base_of(classifier.model).base_model)
    for trains in (True, False):
        classifier.train(trains)
        layer = layers.layer(1, [[], [], [], []])
        assert (layer.dropouts, layer.attention_dropout) == ((behind, 0.1) if trains else ((0.0, 0.0), 0.0))


def test_layers_that_have_scored_can_be_trained(build):
    """Lightning evaluates in inference mode, whose tensors no gradient goes through."""
    classifier, texts = build("bert"), packed()
    with torch.inference_mode():
        classifier(texts)
    agree(learned(classifier, texts), learned(classifier, pad(ROWS, 0, "right")), silent=True)
