"""Pairs of texts: one string with a mark, the tokens of a pair for encoders, a place in the prompt for decoders."""

import encoders
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentexp.config import SequenceClassification, from_conf, load_config
from sentexp.data.audit import audit
from sentexp.data.prompts import Prompt, build_prompt
from sentexp.data.sources import load_source
from sentexp.data.splits import NAMES, load_examples
from sentexp.data.text_parts import PAIR, pair_texts, shorten, shown
from sentexp.data.tokens import encode, tokenize
from sentexp.errors import UserError
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone

LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


@pytest.fixture
def table(tmp_path):
    """Return the words of a table of 30 sentences, each with its food and its service."""
    rows = [
        f"the meal of day {day} was fine but slow,{aspect},{label}"
        for day in range(30)
        for aspect, label in (("food", "good"), ("service", "bad"))
    ]
    (tmp_path / "x.csv").write_text("\n".join(["sentence,aspect,label", *rows]) + "\n")
    return ["data=csv", f"data.path={tmp_path / 'x.csv'}", "data.text=sentence", "data.text_pair=aspect"]


def test_the_pairs_of_a_sentence_stay_in_one_split(table):
    examples = load_examples(load_config(*table, "data.validation_fraction=0.2", "data.test_fraction=0.2").data)
    sentences = {}
    for name in NAMES:
        texts = examples.split(name).column("text").to_pylist()
        assert all(text.partition(PAIR)[2] in ("food", "service") for text in texts)
        sentences[name] = {text.partition(PAIR)[0] for text in texts}
        assert len(texts) == 2 * len(sentences[name]) > 0
    assert not sentences["train"] & sentences["test"]
    assert not sentences["train"] & sentences["validation"]


def test_an_audit_accuses_no_pair(table, tiny):
    examples = load_examples(load_config(*table).data)
    prompt = Prompt(between=" about ")
    tokens = {name: tokenize(examples.split(name), tiny, prompt, 100, 10_000, progress=False) for name in NAMES}
    found = audit("x", examples, tokens, near=False)
    assert [finding.name for finding in found.findings if finding.found] == []


def test_a_pair_without_one_of_its_texts_is_reported(table, tmp_path):
    with (tmp_path / "x.csv").open("a") as stream:
        stream.write("a sentence,,good\n")
    with pytest.raises(UserError, match=r"Row 61 of .* has an empty text or text_pair"):
        load_source(load_config(*table).data)
    with pytest.raises(UserError, match=r"data.text_pair=topic is not a column of .*: its columns are sentence"):
        load_source(load_config(*table[:-1], "data.text_pair=topic").data)
    (tmp_path / "train_text.txt").write_text("a\n")
    (tmp_path / "train_labels.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"is a folder of texts beside labels, which has no column aspect"):
        load_source(load_config(*table[:-2], "data.text_pair=aspect", f"data.path={tmp_path}").data)


@given(st.text(), st.text())
def test_a_pair_comes_apart_again(first, second):
    (pair,) = pair_texts(pa.chunked_array([[first]]), pa.chunked_array([[second]])).to_pylist()
    if pair is None:
        assert not first.replace(PAIR, " ").strip() or not second.replace(PAIR, " ").strip()
        return
    assert pair.count(PAIR) == 1
    left, _, right = pair.partition(PAIR)
    assert first.replace(PAIR, " ").startswith(left)
    assert second.replace(PAIR, " ").endswith(right)


def test_a_pair_is_shortened_in_both_texts_and_shown_plainly():
    assert shorten(f"abcdef{PAIR}ghijkl", 3) == f"abc{PAIR}ghi"
    assert shorten("abcdef", 3) == "abc"
    assert shown(f"fine{PAIR}food") == "fine | food"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Return a function from a kind of encoder to its tokenizer."""
    from transformers import AutoTokenizer

    def read(kind):
        folder = tmp_path_factory.mktemp(kind)
        encoders.write_tokenizer(folder, kind)
        return AutoTokenizer.from_pretrained(folder)

    return read


def framed(tokenizer, template="{text}", **options):
    return build_prompt(from_conf(SequenceClassification, template=template), tokenizer, LABELS, **options)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_an_encoder_reads_the_tokens_of_a_pair(kind, reader):
    tokenizer = reader(kind)
    prompt = framed(tokenizer, pairs=True)
    assert prompt.between == tokenizer.sep_token
    ids, lengths = encode([f"a warm film{PAIR}the cast"], tokenizer, prompt, 100)
    assert ids == [tokenizer("a warm film", "the cast")["input_ids"]]
    assert lengths == [len(ids[0])]


def test_the_embedded_encoder_reads_the_tokens_of_a_pair():
    tokenizer = load_tokenizer(locate_backbone(load_config("model=minilm").model))
    prompt = framed(tokenizer, pairs=True)
    ids, _ = encode([f"The food was great, the staff rude.{PAIR}service"], tokenizer, prompt, 100)
    assert ids == [tokenizer("The food was great, the staff rude.", "service")["input_ids"]]


def test_a_long_pair_loses_the_end_of_its_first_text(reader, tiny):
    tokenizer = reader("bert")
    prompt = framed(tokenizer, pairs=True)
    whole = tokenizer("a warm film " * 20, "the cast")["input_ids"]
    behind = len(tokenizer("the cast", add_special_tokens=False)["input_ids"]) + 2
    (ids,), (length,) = encode([f"{'a warm film ' * 20}{PAIR}the cast"], tokenizer, prompt, 30)
    assert (len(ids), length) == (30, len(whole))
    assert ids[-behind:] == whole[-behind:]
    assert ids[: 30 - behind] == whole[: 30 - behind]
    asked = framed(tiny, "Review: {text}\nOf: {text_pair}\nSentiment:", pairs=True)
    (cut,), _ = encode([f"{'a warm film ' * 20}{PAIR}the cast"], tiny, asked, 60)
    assert tiny.decode(cut).endswith("\nOf: the cast\nSentiment:")
    assert len(cut) == 60
    (longest,), _ = encode([f"film{PAIR}{'the cast ' * 40}"], tiny, asked, 60)
    assert len(longest) == 60


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{text}\nSentiment:", "fine\nAspect: food\nSentiment:"),
        ("{text} How is {text_pair}?", "fine How is food?"),
    ],
)
def test_a_decoder_reads_the_second_text_in_its_place(template, text, tiny):
    assert framed(tiny, template, pairs=True).frame(f"fine{PAIR}food") == text


def test_an_answer_is_asked_for_with_both_texts_in_examples_too(tiny):
    words = ["task=causal_lm", "task.label_words=[bad,good]", "task.template=completion"]
    prompt = build_prompt(load_config(*words).task, tiny, LABELS, [(f"dull{PAIR}plot", 0)], pairs=True)
    assert prompt.frame(f"fine{PAIR}food") == (
        "Text: dull\nAspect: plot\nSentiment: bad\n\nText: fine\nAspect: food\nSentiment:"
    )
    own = "task.template='{text} [{text_pair}] is'"
    prompt = build_prompt(load_config(*words[:2], own).task, tiny, LABELS, pairs=True)
    assert prompt.frame(f"fine{PAIR}food") == "fine [food] is"


def test_places_for_texts_that_rows_lack_are_reported(tiny):
    with pytest.raises(UserError, match=r"has a place for {text_pair}, and rows have no second text: "):
        framed(tiny, "{text} {text_pair}")
    for template in ("{text_pair} {text}", "{text} {text_pair} {text_pair}"):
        with pytest.raises(UserError, match=r"may hold {text_pair} once, behind {text}"):
            from_conf(SequenceClassification, template=template)


def test_single_texts_have_the_prompts_of_before(tiny):
    assert "between" not in framed(tiny).to_dict()
    prompt = framed(tiny, pairs=True)
    assert Prompt.from_dict(prompt.to_dict()) == prompt
