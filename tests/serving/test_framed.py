"""A tokenizer that frames texts gives the tokens that they have in a run."""

import pytest
from transformers import AutoTokenizer

from sentexp.config import SequenceClassification, load_config
from sentexp.data.prompts import build_prompt
from sentexp.data.tokens import encode, row_limit
from sentexp.errors import UserError
from sentexp.models.backbone import load_tokenizer, locate_backbone
from sentexp.serving.framed import save_framed

TEMPLATES = ["{text}", "{text}\nSentiment:", "Review: {text}\nSentiment:", "Is this good?\n{text}"]
TEXTS = ["a warm film", "  blanks around\n", "dull " * 400, "1999, (a year) – très bien!", "好看"]


def tokenizer_of(name, shared):
    if name == "tiny":
        return load_tokenizer(locate_backbone(load_config("model=tiny").model))
    folder = shared / ("models/stories260K-hf" if name == "stories" else f"tokenizers/{name}")
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)  # a rare one
    return tokenizer


def same(tokenizer, template, folder, cut=True):
    """Check that texts have the tokens of the run; cut ones, unless a vocabulary joins texts to the frame."""
    prompt = build_prompt(SequenceClassification(template=template), tokenizer, ["bad", "good"])
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
def test_bytes_have_their_tokens_in_every_frame(template, shared, tmp_path):
    same(tokenizer_of("tiny", shared), template, tmp_path)


@pytest.mark.parametrize("name", ["stories", "gpt2", "llama2", "llama3"])
@pytest.mark.parametrize("template", TEMPLATES[:2])
def test_real_vocabularies_have_theirs(name, template, shared, tmp_path):
    same(tokenizer_of(name, shared), template, tmp_path, cut=name in ("gpt2", "stories"))


def test_words_that_are_joined_to_a_frame_are_refused(shared, tmp_path):
    tokenizer = tokenizer_of("gpt2", shared)
    with pytest.raises(UserError, match="joins the words of task"):
        same(tokenizer, "film{text}ness", tmp_path)
