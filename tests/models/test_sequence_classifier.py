"""Scoring: pooling by position, for any padding (law 4); where the head starts."""

import pytest
import torch
from rounding import rounding
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from sentexp.config import load_config
from sentexp.data.batch import pad
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import Backbone, locate_backbone
from sentexp.models.sequence_classifier import SequenceClassifier, start_head_at_label_words
from sentexp.models.structure import head_of

ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 3], [4, 5, 0]]  # the last row ends in the pad id


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(float(expected.abs().max())))


def llama():
    shape = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    return LlamaForSequenceClassification(shape)


def gpt2():
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=3)
    )


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("pad_id", [0, 49])
def test_left_right_and_no_padding_give_the_same_logits(build, pad_id):
    torch.manual_seed(0)
    classifier = SequenceClassifier(build()).eval()
    with torch.no_grad():
        alone = torch.cat([classifier(pad([row], pad_id, "right")).logits for row in ROWS])
        right = classifier(pad(ROWS, pad_id, "right")).logits
        left = classifier(pad(ROWS, pad_id, "left")).logits
    assert alone.std(0).min() > 100 * rounding(float(alone.abs().max()))
    near(right, alone)
    near(left, alone)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_transformers_gives_the_same_logits_where_no_text_ends_in_padding(build):
    torch.manual_seed(0)
    model = build().eval()
    model.config.pad_token_id = 0
    texts = pad(ROWS[:3], 0, "right")
    with torch.no_grad():
        expected = model(texts.ids, attention_mask=texts.mask).logits
        near(SequenceClassifier(model)(texts).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_starts_at_the_label_words(tmp_path, tied):
    tokenizer = load_tokenizer(locate_backbone(load_config("model=tiny").model))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    language_model = LlamaForCausalLM(shape)
    language_model.save_pretrained(tmp_path)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    start_head_at_label_words(
        model, Backbone(folder=tmp_path, revision=""), tokenizer, "{text}\nIs it", ["bad", "good"]
    )
    for row, word in enumerate([" bad", " good"]):
        expected = language_model.lm_head.weight[tokenizer(word)["input_ids"]].mean(0)
        torch.testing.assert_close(head_of(model).weight[row], expected)
