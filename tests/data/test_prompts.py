"""Prompts: templates become head and tail, the answers' tokens are those of the whole text, faults are told."""

import copy
from functools import cache
from pathlib import Path

import pytest

from sentexp.config import PromptTemplate, load_config
from sentexp.data.prompts import (
    CONTENT_FREE,
    Prompt,
    build_prompt,
    choose_shots,
    holding_special_tokens,
    resolve_template,
)
from sentexp.data.splits import load_examples
from sentexp.data.tokens import encode
from sentexp.errors import UserError
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone

LABELS = ["negative", "positive"]
WORDS = "task.label_words=[bad,good]"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SILENT = NO_SYSTEM.replace("{{ raise_exception('no system role') }}", "").replace(
    "<{{ m.role }}>{{ m.content }}", "{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}"
)


TEMPLATES = {file.stem: file for file in sorted((Path(__file__).parents[1] / "support/templates").glob("*.jinja"))}


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


@pytest.fixture
def tokenizer(tiny):
    return copy.deepcopy(tiny)


@cache  # composing takes longer than most of these tests
def task(*overrides):
    return load_config("task=causal_lm", *overrides).task


def build(tokenizer, *overrides, labels=LABELS, shots=()):
    return build_prompt(task(*overrides), tokenizer, labels, shots)


def test_the_chat_template_of_the_tokenizer_frames_the_text(tokenizer):
    tokenizer.chat_template = CHATML
    prompt = build(tokenizer, WORDS)
    assert prompt.frame("a film") == (
        "<|im_start|>system\nAnswer with the sentiment of the text: bad or good.<|im_end|>\n"
        "<|im_start|>user\nText: a film\nSentiment:<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not prompt.special_tokens
    assert [tokenizer.decode(answer) for answer in prompt.answers] == ["bad", "good"]
    assert tokenizer.decode(prompt.end) == "<|im_end|>\n"


def test_plain_completion_is_for_tokenizers_without_a_chat_template(tokenizer):
    prompt = build(tokenizer, WORDS)
    assert prompt.frame("a film") == "Text: a film\nSentiment:"
    assert prompt.end == [tokenizer.eos_token_id]
    assert tokenizer.decode(prompt.answer_prefix_ids) == " "  # of bytes, so that the blank is a token of its own
    tokenizer.chat_template = CHATML
    assert build(tokenizer, WORDS, "task.template=completion").frame("x") == "Text: x\nSentiment:"


def test_the_form_of_llama_2_is_the_published_one(vocabulary):
    tokenizer = vocabulary("llama2")
    prompt = build(tokenizer, "task.template=llama2", "task.system='Is it {labels}?'", shots=[("dull", 0)])
    assert prompt.frame("a film") == (
        "<s>[INST] <<SYS>>\nIs it negative or positive?\n<</SYS>>\n\ndull [/INST] negative </s><s>[INST] a film [/INST]"
    )
    assert not prompt.special_tokens  # its <s> is written, so the tokenizer must not add one
    (row,), _ = encode(["a film"], tokenizer, prompt, 500)
    assert row.count(tokenizer.bos_token_id) == 2
    assert tokenizer.convert_ids_to_tokens([answer[0] for answer in prompt.answers]) == ["▁negative", "▁positive"]
    assert prompt.end[-1] == tokenizer.eos_token_id


def test_llama_2_chat_agrees_with_a_template_that_forbids_other_turns(vocabulary):
    tokenizer = vocabulary("llama2")
    tokenizer.chat_template = TEMPLATES["inst"].read_text()
    same = ["task.system='Say {labels}.'", "task.template={user: '{text}', system: x}"]
    assert build(tokenizer, *same) == build(tokenizer, "task.system='Say {labels}.'", "task.template=llama2")


@pytest.mark.parametrize("name", ["llama2", "llama3", "gpt2"])
@pytest.mark.parametrize("template", ["completion", "llama2", "'{text}'", "'{text} Was it good?'", "'{text}\nIt was'"])
@pytest.mark.parametrize("labels", [LABELS, ["1", "2", "3"], ["terrible", "so so", "wonderful"]])
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(vocabulary, name, template, labels):
    tokenizer = vocabulary(name)
    prompt = build(tokenizer, f"task.template={template}", labels=labels)
    for text in ("a warm film.", "Awful!", "so-so 3"):
        (row,), _ = encode([text], tokenizer, prompt, 500)
        for word, answer in zip(labels, prompt.answers, strict=True):
            whole = tokenizer(f"{prompt.frame(text)} {word}", add_special_tokens=prompt.special_tokens)["input_ids"]
            assert row + answer == whole


def test_a_blank_that_all_numbers_begin_with_is_a_part_of_the_prompt(vocabulary):
    tokenizer = vocabulary("llama3")
    prompt = build(tokenizer, labels=["1", "2"])
    assert tokenizer.decode(prompt.answer_prefix_ids) == " "
    assert [tokenizer.decode(answer) for answer in prompt.answers] == ["1", "2"]
    (row,), (full,) = encode(["a film"], tokenizer, prompt, 500)
    assert row[-1:] == prompt.answer_prefix_ids
    assert full == len(row)


@pytest.mark.parametrize("form", TEMPLATES)
def test_chat_templates_of_every_form_frame_the_text_once(vocabulary, form):
    tokenizer = vocabulary("llama2")
    tokenizer.chat_template = TEMPLATES[form].read_text()
    prompt = build(tokenizer, "task.template=chat", shots=[("dull", 0)])
    assert prompt.frame("a film").count("a film") == 1
    assert prompt.head.count("negative or positive") == 1
    assert prompt.head.count("dull") == 1
    said = ("user", "Text: a film\nSentiment:"), ("assistant", "positive")
    turns = [{"role": role, "content": content} for role, content in said]
    ending = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False).partition("a film")[2]
    assert ending.startswith(prompt.tail)
    assert ending[len(prompt.tail) :].strip().startswith("positive")
    (row,), _ = encode(["a film"], tokenizer, prompt, 500)
    whole = tokenizer(f"{prompt.head}a film{ending}", add_special_tokens=prompt.special_tokens)["input_ids"]
    assert row + prompt.answers[1] + prompt.end == whole


def test_a_prompt_does_not_change_with_the_date(vocabulary):
    tokenizer = vocabulary("llama2")
    tokenizer.chat_template = TEMPLATES["dated"].read_text()
    assert "Today: 26 Jul 2024" in build(tokenizer).head
    today = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert "Today: " in today
    assert "Today: 26 Jul 2024" not in today


def test_the_system_prompt_goes_into_the_first_turn_where_there_is_no_role_for_it(tokenizer):
    for template in (NO_SYSTEM, SILENT):
        tokenizer.chat_template = template
        prompt = build(tokenizer, WORDS, shots=[("dull", 0)])
        assert prompt.head == (
            "<user>Answer with the sentiment of the text: bad or good.\n\nText: dull\nSentiment:<assistant>bad"
            "<user>Text: "
        ), template


def test_the_labels_of_the_data_are_named(tokenizer):
    prompt = build(tokenizer, "task.system='One of {labels}:'", labels=["bad", "even", "good"])
    assert prompt.head == "One of bad, even or good:\n\nText: "


def test_label_words_are_a_list_or_a_mapping(tokenizer):
    assert build(tokenizer, WORDS).words == ["bad", "good"]
    assert build(tokenizer, "task.label_words={positive: up, negative: down}").words == ["down", "up"]
    with pytest.raises(UserError, match=r"must give one word to each of the labels negative, neutral, positive"):
        build(tokenizer, WORDS, labels=["negative", "neutral", "positive"])


def test_numbers_as_labels_have_words(tokenizer):
    words = ["data.labels=null", "task.label_words={1: awful, 2: fine}"]
    assert build(tokenizer, *words, labels=["1", "2"]).words == ["awful", "fine"]


def test_a_prompt_that_ends_in_an_empty_line_has_the_tokens_of_training(vocabulary, tmp_path):
    """GPT-2's tokenizer reads two newlines as one token at the end of a text, and as two before a word."""
    tokenizer = vocabulary("gpt2")
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    assert len(tokenizer("\n\nx")["input_ids"]) == 3
    file = tmp_path / "mine.yaml"
    file.write_text(
        "user: '{text}'\nchat_template: |-\n  {% for m in messages %}{{ m.content }}{{ '\\n\\n' }}{% endfor %}\n"
    )
    prompt = build(tokenizer, f"task.template={file}")
    assert prompt.tail == "\n\n"
    (row,), (full,) = encode(["a film"], tokenizer, prompt, 500)
    for word, answer in zip(prompt.words, prompt.answers, strict=True):
        assert row + answer == tokenizer(f"a film\n\n{word}")["input_ids"]
    assert full == len(row)


def test_examples_hold_no_special_tokens(vocabulary):
    tokenizer = vocabulary("llama2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.add_tokens(["<smile>"])
    texts = ["a film", "a </s> film", "<|end|>", "<smile>", "<s"]
    assert holding_special_tokens(texts, tokenizer) == [1, 2]


def test_own_templates_are_a_file_or_a_mapping(tokenizer, tmp_path):
    file = tmp_path / "mine.yaml"
    joined = "'{% for m in messages %}{{ m.content }} {% endfor %}'"
    file.write_text(f"system: 'Say {{labels}}.'\nuser: '<{{text}}>'\nchat_template: {joined}\n")
    assert build(tokenizer, WORDS, f"task.template={file}").frame("x") == "Say bad or good. <x>"
    mapping = f"task.template={{user: '{{text}} was', chat_template: {joined}}}"
    assert build(tokenizer, WORDS, mapping).frame("x") == "x was"
    assert build(tokenizer, WORDS, "task.template='{text} It was'").frame("x") == "x It was"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.template=tulu"], r"must be one of auto, chat, completion, llama2, a YAML file that is there, or a str"),
        (["task.template={user: hello}"], r"user in task.template='hello' must hold \{text\} exactly once"),
        (["task.template='{text} {text}'"], r"must hold \{text\} exactly once"),
        (["task.template={text: 1}"], r"must hold user \(with \{text\} in it\)"),
        (["task.template={user: '{text}', role: x}"], r"may hold system and chat_template"),
        (["task.template=chat"], r"has no chat_template \(chat never has\), and the tokenizer of this model"),
        (["task.template={user: '{text}', chat_template: '{% for %}'}"], r"its chat template cannot be rendered"),
        (["task.template={user: '{text}', chat_template: 'hello'}"], r"must give the text and the answer exactly once"),
        (["task.label_words=[bad,bad]"], r"must be a different word for each label"),
        (["task.label_words=[bad,' ']"], r"must be a different word for each label"),
        (["task.label_words=bad"], r"must be texts, one for each label"),
        (["task.label_words=[better,bad]"], r"'better' and 'bad' begin with the same token 'b'"),
        (["task.label_words=[bad,bade]"], r"'bad' and 'bade' begin with the same token 'b'"),
        (["task.label_words=[a,b,c]"], r"must give one word to each of the labels negative, positive"),
        (["task.label_words={negative: a, neutral: b}"], r"must give one word to each of the labels"),
        (["task.label_words=[true,false]"], r"must be texts, one for each label: a word such as true is quoted"),
        (["task.template=/nope/x.yaml"], r"must be one of auto, chat, completion, llama2, a YAML file"),
        (["task.system='Say {label}.'"], r"holds \{label\}, which has no meaning there: use \{labels\}\."),
        (["task.system='Say {text}.'"], r"holds \{text\}, which has no meaning there"),
        (["task.template='{text} {foo}'"], r"holds \{foo\}, which has no meaning there: use \{text\} and \{labels"),
        (["task.shots=-1"], r"task.shots=-1 must be at least 0"),
        (["task.shots=2", "baseline=false"], r"task.shots=2 is for the prompt of the untuned base"),
        (["task.loss=full", "task.focal_gamma=1"], r"task.focal_gamma=1.0 weighs answers"),
        (["peft=head"], r"peft=head trains a classification head, and task=causal_lm has none"),
        (["optim.head_lr=1e-3"], r"optim.head_lr=0.001 is the rate of a classification head"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_reported(tokenizer, overrides, message):
    with pytest.raises(UserError, match=message):
        build(tokenizer, *overrides)


def test_a_file_that_is_no_yaml_is_reported(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("user: [")
    with pytest.raises(UserError, match=r"mine.yaml is not a YAML file"):
        task(f"task.template={file}")


def test_words_that_vanish_or_merge_are_reported(vocabulary):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: index for index, word in enumerate(["[UNK]", "Text", ":", "Sentiment", "good", "bad", "a"])}
    backend = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    few = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert build(few, WORDS).answers == [[5], [4]]
    with pytest.raises(UserError, match=r"has no tokens for 'great'"):
        build(few, "task.label_words=[bad,great]")
    with pytest.raises(UserError, match=r"its end ' Is it un' and the label word 'happy' become one token"):
        template = "{user: '{text} Is it un', chat_template: '{% for m in messages %}{{ m.content }}{% endfor %}'}"
        build(vocabulary("gpt2"), f"task.template={template}", "task.label_words=[happy,sad]")


def test_a_tokenizer_that_ends_every_text_puts_no_end_before_the_answer(vocabulary):
    from tokenizers.processors import TemplateProcessing

    tokenizer = vocabulary("llama2")
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    prompt = build(tokenizer, "task.template=completion")
    (row,), _ = encode(["a film"], tokenizer, prompt, 500)
    assert row[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in row


def test_auto_is_what_the_tokenizer_can(tokenizer):
    assert resolve_template(task(), tokenizer).system == ""
    tokenizer.chat_template = CHATML
    assert resolve_template(task(), tokenizer).chat_template is None
    assert resolve_template(task("task.template='{text}!'"), tokenizer) == PromptTemplate(
        user="{text}!", chat_template=resolve_template(task("task.template=completion"), tokenizer).chat_template
    )


def test_a_head_needs_a_plain_frame_only(tokenizer):
    plain = build_prompt(load_config("task.template='Review: {text}!'").task, tokenizer, LABELS)
    assert plain == Prompt(head="Review: ", tail="!")


def test_content_free_texts_are_framed(tokenizer):
    prompt = build(tokenizer, WORDS)
    rows, _ = encode(CONTENT_FREE, tokenizer, prompt, 500)
    assert [tokenizer.decode(row) for row in rows] == [f"Text: {text}\nSentiment: " for text in CONTENT_FREE]


@pytest.fixture(scope="module")
def examples(reviews):
    words = ["data=sst2", f"data.path={reviews}", "data.splits.validation=validation", "data.splits.test=test"]
    return load_examples(load_config(*words).data)


def test_shots_are_balanced_and_seeded(examples):
    fits = examples.targets("train") >= 0
    shots = choose_shots(examples, task("task.shots=6"), fits)
    assert sorted(label for _, label in shots) == [0, 0, 0, 1, 1, 1]
    known = dict(zip(examples.train.column("text").to_pylist(), examples.targets("train").tolist(), strict=True))
    assert all(known[text] == label for text, label in shots)
    assert choose_shots(examples, task("task.shots=6"), fits) == shots
    assert choose_shots(examples, task("task.shots=6", "task.shots_seed=1"), fits) != shots
    assert sorted(label for _, label in choose_shots(examples, task("task.shots=3"), fits)) == [0, 0, 1]
    assert set(choose_shots(examples, task("task.shots=2"), fits)) <= set(shots)


def test_shots_are_whole_texts(examples):
    fits = examples.targets("train") >= 0
    first = choose_shots(examples, task("task.shots=2"), fits)[0][0]
    fits[examples.train.column("text").to_pylist().index(first)] = False
    assert first not in {text for text, _ in choose_shots(examples, task("task.shots=2"), fits)}
    with pytest.raises(UserError, match=r"task.shots=40 takes 20 training texts of the label negative, and 1[56] can"):
        choose_shots(examples, task("task.shots=40"), fits)
