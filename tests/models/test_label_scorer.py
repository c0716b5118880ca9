"""Likelihoods: those of a plain reference, for any padding, tokenizer and number of tokens; losses, priors, answers."""

import math

import pytest
import torch
from rounding import rounding
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sentexp.config import load_config
from sentexp.data.batch import Padded, pad
from sentexp.data.prompts import build_prompt
from sentexp.data.tokens import encode
from sentexp.errors import UserError
from sentexp.models.label_scorer import LabelScorer, align_right, label_prior, without_prior

TEXTS = ["a warm and funny film", "dull", "two hours passed like twenty minutes and i would see it again tomorrow"]
ONE, SEVERAL = ["negative", "positive"], ["terrible", "meh", "a treat of a film"]
KINDS = [("llama2", "llama"), ("gpt2", "gpt2"), ("llama3", "llama")]


def language_model(kind, vocabulary):
    torch.manual_seed(0)
    if kind == "gpt2":
        shape = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=16, n_layer=2, n_head=2)
        model = GPT2LMHeadModel(shape)
    else:
        shape = LlamaConfig(
            vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
        model = LlamaForCausalLM(shape)
    model.get_output_embeddings().weight.data.normal_(std=0.5)  # so that labels differ by much more than 1e-5
    return model.eval()


def near(found, expected):
    """Compare likelihoods, sums of up to six logarithms of about 10 each, up to the rounding of such a sum."""
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(max(1.0, float(expected.abs().max())), terms=16))


class Case:
    """A tokenizer, a language model, a prompt and its rows."""

    def __init__(self, vocabulary, name, kind, labels, *overrides):
        self.tokenizer = vocabulary(name)
        self.task = load_config("task=causal_lm", "task.template=completion", *overrides).task
        self.labels = labels
        self.prompt = build_prompt(self.task, self.tokenizer, labels)
        self.rows, _ = encode(TEXTS, self.tokenizer, self.prompt, 100)
        self.model = language_model(kind, len(self.tokenizer))

    def scorer(self):
        """Return what is tested."""
        return LabelScorer(
            self.model, self.prompt.answers, self.prompt.end, self.task, 0, self.prompt.max_answer_tokens
        )

    def plain(self, ids):
        """Return the log-likelihood of every next token, by a pass of its own, without our code."""
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits.float().log_softmax(-1)[0]

    def reference(self):
        """Return the log-likelihood of each label: full logits, log-softmax, sum over the label's tokens."""
        scores = []
        for text in TEXTS:
            row = []
            for label in self.labels:
                framed = self.prompt.frame(text)
                start = len(self.tokenizer(framed, add_special_tokens=self.prompt.special_tokens)["input_ids"])
                start += len(self.prompt.answer_prefix_ids)
                whole = self.tokenizer(f"{framed} {label}", add_special_tokens=self.prompt.special_tokens)["input_ids"]
                likely = self.plain(whole)
                row.append(sum(float(likely[place - 1, whole[place]]) for place in range(start, len(whole))))
            scores.append(row)
        return torch.tensor(scores)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("labels", [ONE, SEVERAL])
def test_likelihoods_are_those_of_the_reference_for_any_padding(vocabulary, name, kind, labels):
    case = Case(vocabulary, name, kind, labels)
    assert (max(map(len, case.prompt.answers)) > 1) == (labels is SEVERAL)
    scorer, expected = case.scorer(), case.reference()
    assert float((expected[:, 0] - expected[:, 1]).abs().min()) > 10 * rounding(float(expected.abs().max()), terms=16)
    with torch.no_grad():
        alone = [scorer(pad([row], 0, "right")) for row in case.rows]
        for found in (
            torch.cat([scores.logits for scores in alone]),
            scorer(pad(case.rows, 0, "right")).logits,
            scorer(pad(case.rows, 0, "left")).logits,
        ):
            near(found, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_sees_a_label_by_itself(vocabulary, attention):
    case = Case(vocabulary, "llama2", "llama", SEVERAL)
    case.model.set_attn_implementation(attention)
    with torch.no_grad():
        near(case.scorer()(pad(case.rows, 0, "right")).logits, case.reference())


def test_flash_attention_is_refused_for_labels_of_several_tokens(vocabulary):
    case = Case(vocabulary, "gpt2", "gpt2", SEVERAL)
    case.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"flash_attention_2 cannot score label words of several tokens"):
        case.scorer()


def test_length_normalisation_divides_by_the_tokens(vocabulary):
    case = Case(vocabulary, "gpt2", "gpt2", SEVERAL, "task.length_normalization=true")
    lengths = torch.tensor([len(answer) for answer in case.prompt.answers])
    with torch.no_grad():
        found = case.scorer()(pad(case.rows, 0, "right"))
    near(found.logits, case.reference() / lengths)
    near(found.outside, 1 - case.reference().exp().sum(-1))


@pytest.mark.parametrize("labels", [ONE, SEVERAL])
def test_what_is_no_label_is_measured(vocabulary, labels):
    case = Case(vocabulary, "llama2", "llama", labels)
    with torch.no_grad():
        case.model.get_output_embeddings().weight[case.prompt.answers[0][0]] *= 6  # likely for some rows, not for all
        found = case.scorer()(pad(case.rows, 0, "left"))
    near(found.outside, 1 - case.reference().exp().sum(-1))
    best = [int(case.plain(row)[-1].argmax()) for row in case.rows]
    assert found.first_token.tolist() == best
    firsts = {answer[0] for answer in case.prompt.answers}
    assert found.irregular.tolist() == [token not in firsts for token in best]


@pytest.mark.parametrize("labels", [ONE, SEVERAL])
@pytest.mark.parametrize("loss", ["answer", "full"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_the_mean_over_the_tokens_that_are_learned(vocabulary, labels, loss, side):
    case = Case(vocabulary, "llama2", "llama", labels, f"task.loss={loss}")
    targets = torch.tensor([1, 0, 1])
    expected = []
    for row, target in zip(case.rows, targets.tolist(), strict=True):
        answer = case.prompt.answers[target] + case.prompt.end
        assert case.prompt.end
        whole = row + answer
        likely = case.plain(whole)
        first = 1 if loss == "full" else len(row)
        expected.append(-sum(float(likely[i - 1, whole[i]]) for i in range(first, len(whole))) / (len(whole) - first))
    found = case.scorer().losses(pad(case.rows, 0, side), targets)
    near(found.detach(), torch.tensor(expected))


def test_the_loss_over_label_words_is_the_cross_entropy_of_the_likelihoods(vocabulary):
    case = Case(vocabulary, "llama2", "llama", SEVERAL, "task.loss=label_words")
    targets = torch.tensor([2, 0, 1])
    found = case.scorer().losses(pad(case.rows, 0, "right"), targets)
    expected = nn.functional.cross_entropy(case.reference(), targets, reduction="none")
    near(found.detach(), expected)


@pytest.mark.parametrize("loss", ["answer", "label_words"])
def test_logits_are_computed_where_they_are_needed_only(vocabulary, loss):
    case = Case(vocabulary, "llama2", "llama", SEVERAL, f"task.loss={loss}")
    scorer, seen = case.scorer(), []
    case.model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    scorer.losses(pad(case.rows, 0, "right"), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        scorer(pad(case.rows, 0, "right"))
    branches = sum(len(answer) - 1 for answer in case.prompt.answers) + 1
    assert seen == [
        max(map(len, case.prompt.answers)) + len(case.prompt.end) if loss == "answer" else branches,
        branches,
    ]
    assert max(map(len, case.rows)) > max(seen)


def test_a_gradient_reaches_every_answer_token(vocabulary):
    case = Case(vocabulary, "gpt2", "gpt2", SEVERAL, "task.loss=label_words")
    case.scorer().losses(pad(case.rows, 0, "left"), torch.tensor([0, 1, 2])).sum().backward()
    gradient = case.model.transformer.wte.weight.grad
    assert torch.isfinite(gradient).all()
    assert all(gradient[token].abs().max() > 0 for answer in case.prompt.answers for token in answer)


def test_bfloat16_weights_are_scored_in_float32(vocabulary):
    """Logits in bfloat16 are multiples of 1/16 at these sizes: rows would tie, and cost area under the curve."""
    case = Case(vocabulary, "llama2", "llama", ONE)
    model = case.model.to(torch.bfloat16)
    scorer = case.scorer()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(*align_right(pad(case.rows, 0, "right"))).last_hidden_state[:, -1]
        found = model.lm_head(hidden)
    assert found.dtype == torch.float32
    near(found, hidden.float() @ model.lm_head.weight.detach().float().T)
    assert scorer.losses(pad(case.rows, 0, "right"), torch.tensor([0, 1, 1])).dtype == torch.float32


def test_answers_are_written_greedily(vocabulary):
    case = Case(vocabulary, "gpt2", "gpt2", SEVERAL)
    with torch.no_grad():
        found = case.scorer().generate(pad(case.rows, 0, "right"))
    longest = max(map(len, case.prompt.answers))
    assert found.shape == (3, longest + 3)
    for row, answer in zip(case.rows, found.tolist(), strict=True):
        ids = list(row)
        for token in answer:
            assert token == int(case.plain(ids)[-1].argmax())
            ids.append(token)


def test_padding_moves_to_the_left_and_tokens_keep_their_order():
    ids, mask = torch.tensor([[5, 6, 7], [8, 0, 0], [0, 9, 4]]), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]])
    moved = align_right(Padded(ids, mask))
    assert moved.ids[moved.mask.bool()].tolist() == [5, 6, 7, 8, 9, 4]
    assert moved.mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_a_prior_is_divided_out():
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]).log()
    prior = label_prior(logits)
    torch.testing.assert_close(prior, torch.tensor([23 / 30, 7 / 30]))
    found = without_prior(logits, prior).softmax(-1)
    divided = logits.exp() / prior
    torch.testing.assert_close(found, divided / divided.sum(-1, keepdim=True))
    assert found.argmax(-1).tolist() == [0, 0, 1]
    assert math.isfinite(float(without_prior(logits, torch.tensor([1.0, 0.0])).max()))
