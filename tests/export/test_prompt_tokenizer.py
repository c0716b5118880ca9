"""A tokenizer that frames texts gives the tokens that they have in a run."""

import pytest
from transformers import AutoTokenizer

from sentexp.config import SequenceClassification, from_conf, load_config
from sentexp.data.prompts import build_prompt
from sentexp.data.tokens import encode, row_limit
from sentexp.errors import UserError
from sentexp.export.prompt_tokenizer import save_framed
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone

TEMPLATES = ["{text}", "{text}\nSentiment:", "Review: {text}\nSentiment:", "Is this good?\n{text}"]
TEXTS = ["a warm film", "  blanks around\n", "dull and slow " * 150, "1999, (a year) – très bien!", "好看"]


@pytest.fixture
def tokenizer_of(vocabulary, llama):
    """Return a function from a name to a tokenizer with a pad token."""

    def find(name):
        if name == "tiny":
            return load_tokenizer(locate_backbone(load_config("model=tiny").model))
        tokenizer = AutoTokenizer.from_pretrained(llama) if name == "llama" else vocabulary(name)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)  # a rare one
        return tokenizer

    return find


def same(tokenizer, template, folder, cut=True):
    """Check that texts have the tokens of the run; cut ones, unless a vocabulary joins texts to the frame."""
    prompt = build_prompt(from_conf(SequenceClassification, template=template), tokenizer, ["bad", "good"])
    limit, _ = row_limit(tokenizer, prompt, 128, 512)
    save_framed(tokenizer, prompt, 128, 512, True, folder)
    framed = AutoTokenizer.from_pretrained(folder)
    wanted, _ = encode([text.strip() for text in TEXTS], tokenizer, prompt, limit)
    assert max(map(len, wanted)) == limit
    found = framed(TEXTS, truncation=True)["input_ids"]
    assert [len(ids) for ids in found] == [len(ids) for ids in wanted]
    assert [ids for ids in found if cut or len(ids) < limit] == [ids for ids in wanted if cut or len(ids) < limit]
    padded = framed(TEXTS[:2], padding=True)
    assert [sum(mask) for mask in padded["attention_mask"]] == [len(ids) for ids in wanted[:2]]


@pytest.mark.parametrize("template", TEMPLATES)
def test_bytes_have_their_tokens_in_every_frame(template, tokenizer_of, tmp_path):
    same(tokenizer_of("tiny"), template, tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama2", "llama3"])
@pytest.mark.parametrize("template", TEMPLATES[:2])
def test_vocabularies_of_every_kind_have_theirs(name, template, tokenizer_of, tmp_path):
    same(tokenizer_of(name), template, tmp_path, cut=template == "{text}" or name in ("gpt2", "llama3"))


def test_words_that_are_joined_to_a_frame_are_refused(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of("gpt2")
    with pytest.raises(UserError, match="joins the words of task"):
        same(tokenizer, "dram{text}ness", tmp_path)
