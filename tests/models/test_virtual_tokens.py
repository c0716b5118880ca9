"""Virtual tokens: what is pooled and scored is PEFT's own of each row, whatever the padding, decoder or encoder."""

import decoders
import encoders
import pytest
import torch
from peft import PeftModel
from rounding import agree, rounding
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sentexp.config import load_config
from sentexp.data.batch import pad
from sentexp.errors import UserError
from sentexp.models.adapters import HARMLESS, attach
from sentexp.models.encoder_classifier import classifier_over
from sentexp.models.encoders import ENCODERS
from sentexp.models.label_scorer import LabelScorer
from sentexp.models.saved import find_base, read_trained
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.train import train as train_config
from sentexp.tracking.predictions import file_name, read_predictions

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in HARMLESS]
METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning")
DECODERS = ("llama", "gemma3_text", "gpt2", "gpt_neox", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
ROWS = [[2, *range(40, 50), 3], [2, 9, 3], [2, *range(20, 44), 3], [70]]
SEVERAL = [[10], [11, 12], [13, 14, 15]]
END = [7]
methods = pytest.mark.parametrize("method", METHODS)


def build(folder, method, auto):
    """Return a model with virtual tokens that change what it says."""
    torch.manual_seed(0)
    options = {"num_labels": 3} if auto is AutoModelForSequenceClassification else {}
    model = auto.from_pretrained(folder, **options)
    model.config.pad_token_id = model.config.pad_token_id or 0
    trained, audit = attach(model, load_config(f"peft={method}", "peft.num_virtual_tokens=4").peft)
    assert audit.trainable_total == trained.get_nb_trainable_parameters()[0]
    for value in trained.parameters():
        if value.requires_grad:
            value.data.normal_(std=0.3)
    return trained.eval()


def sides(rows):
    return [pad(rows, 0, side) for side in ("left", "right")]


def learned(classifier, texts):
    """Return losses, and the gradients of a sum that weighs each of them, by name."""
    classifier.zero_grad()
    losses = classifier.losses(texts, torch.tensor([0, 1, 2, 0]))
    (losses * torch.linspace(0.5, 2, len(losses))).sum().backward()
    gradients = {name: part.grad for name, part in classifier.named_parameters() if part.requires_grad}
    return {"loss": losses.detach()} | gradients


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(float(expected.abs().max())))


@methods
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_pools_the_last_token_whatever_the_padding(kind, method, tmp_path):
    decoders.write_decoder(tmp_path, kind)
    model = build(tmp_path, method, AutoModelForSequenceClassification)
    classifier = classifier_over(model)
    left, right = sides(ROWS)
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row]), torch.ones(1, len(row))).logits for row in ROWS])
        near(classifier(right).logits, expected)
        near(classifier(left).logits, expected)
        for parameter in model.prompt_encoder.parameters():
            parameter.mul_(0.5)
        assert (classifier(right).logits - expected).abs().max() > 100 * rounding(float(expected.abs().max()))
    agree(learned(classifier, left), learned(classifier, right))


def likelihood(model, row, answer):
    """Return the log-likelihood of an answer to a row, as PEFT's forward pass has it."""
    ids = torch.tensor([[*row, *answer]])
    likely = model(ids, torch.ones_like(ids)).logits[0].log_softmax(-1)[-len(answer) - 1 : -1]
    return likely[range(len(answer)), answer].sum()


@methods
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "qwen3"])
def test_label_words_have_the_likelihoods_of_peft(kind, method, tmp_path):
    """The words have several tokens, each of which is seen by its own word only."""
    decoders.write_decoder(tmp_path, kind)
    model = build(tmp_path, method, AutoModelForCausalLM)
    with torch.no_grad():
        expected = torch.stack([torch.stack([likelihood(model, row, words) for words in SEVERAL]) for row in ROWS])
    for loss in ("answer", "full", "label_words"):
        task = load_config("task=causal_lm", "task.template=completion", f"task.loss={loss}").task
        scorer = LabelScorer(model, SEVERAL, END, task, 0, 4).eval()
        left, right = sides(ROWS)
        with torch.no_grad():
            near(scorer(left).logits, expected)
            near(scorer(right).logits, expected)
        agree(learned(scorer, left), learned(scorer, right))


@methods
def test_answers_are_those_of_peft(method, tmp_path):
    decoders.write_decoder(tmp_path, "llama")
    model = build(tmp_path, method, AutoModelForCausalLM)
    task = load_config("task=causal_lm", "task.template=completion").task
    ends = []
    for end in ([7], [11]):
        scorer = LabelScorer(model, SEVERAL, end, task, 0, 6).eval()
        written = scorer.generate(pad(ROWS, 0, "right"))
        for row, found in zip(ROWS, written.tolist(), strict=True):
            ids = torch.tensor([row])
            for number, token in enumerate(found):
                with torch.no_grad():
                    likely = model(ids, torch.ones_like(ids)).logits[0, -1]
                assert token == 0 if end[0] in found[:number] else likely[token] >= likely.max() - rounding()
                ids = torch.cat([ids, torch.tensor([[token]])], 1)
        ends.append(written)
    assert ends[0].shape == (4, 6)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_pools_as_peft_does(kind, method, tmp_path):
    """That is the first column, a virtual token, or the mean of all."""
    encoders.write_encoder(tmp_path, kind)
    model = build(tmp_path, method, AutoModelForSequenceClassification)
    classifier = classifier_over(model).eval()
    rows = [[4, *row] for row in ROWS]
    padded = pad(rows, int(model.config.pad_token_id), "right")
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row]), torch.ones(1, len(row))).logits for row in rows])
        near(classifier(padded).logits, expected)
        near(classifier(pad(rows, int(model.config.pad_token_id), "left")).logits, expected)


def test_a_prefix_before_an_encoder_is_refused(tmp_path):
    encoders.write_encoder(tmp_path, "bert")
    with pytest.raises(
        UserError, match="needs layers that take keys and values from before a text, and those of bert do"
    ):
        build(tmp_path, "prefix_tuning", AutoModelForSequenceClassification)


@methods
def test_plain_peft_reads_an_adapter_of_a_language_model(method, config):
    result = train_config(
        config(f"peft={method}", "peft.num_virtual_tokens=3", "task=causal_lm", "task.loss=label_words")
    )
    trained = read_trained(result.weights)
    base = AutoModelForCausalLM.from_pretrained(find_base(trained).folder)
    model = PeftModel.from_pretrained(base, result.weights).eval()
    inputs = prepare_inputs(resolve_inputs(config("task=causal_lm")))
    said = read_predictions(result.folder / file_name("test")).probabilities
    for row, probabilities in zip(inputs.tokens["test"].ids(range(8)), said, strict=True):
        with torch.no_grad():
            expected = torch.stack([likelihood(model, row, answer) for answer in inputs.prompt.answers]).softmax(0)
        torch.testing.assert_close(torch.tensor(probabilities), expected, rtol=0, atol=rounding())


def test_a_prompt_may_begin_as_a_text(config):
    words = ["peft=prompt_tuning", "peft.num_virtual_tokens=4", "peft.prompt_tuning_init=TEXT"]
    result = train_config(config(*words, "peft.prompt_tuning_init_text='good or bad'", "optim.lr=1e-9"))
    spec = resolve_inputs(config())
    ids = spec.tokenizer("good or bad", add_special_tokens=True)["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(spec.backbone.folder, num_labels=2)
    tuned = PeftModel.from_pretrained(model, result.weights)
    expected = model.get_input_embeddings()(torch.tensor((ids * 4)[:4]))
    near(tuned.prompt_encoder["default"].embedding.weight.detach(), expected.detach())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["peft.prompt_tuning_init=TEXT"],
            "PEFT refuses the keys of peft.type=PROMPT_TUNING: .*prompt_tuning_init_text",
        ),
        (["peft=prefix_tuning", "trainer.gradient_checkpointing=true"], "does not work with gradient checkpointing"),
        (
            ["peft.num_virtual_tokens=4000"],
            r"positions of .* that virtual tokens leave \(peft.num_virtual_tokens=4000\)",
        ),
        (["peft.num_virtual_tokens=0"], "peft.num_virtual_tokens=0 must be at least 1"),
        (["peft.quantization=int8"], "peft.quantization=int8 does not go with PROMPT_TUNING"),
    ],
)
def test_what_does_not_fit_is_one_sentence(overrides, sentence, config):
    with pytest.raises(UserError, match=sentence):
        train_config(config("peft=prompt_tuning", *overrides))
