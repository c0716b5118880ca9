"""Tokens: the frame survives truncation, the cache knows what it depends on, is whole or absent, and is shared."""

import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from sentexp.config import load_config
from sentexp.data.prompts import Prompt
from sentexp.data.tokens import encode, tokenize
from sentexp.errors import UserError
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone

FRAME = "Review: {text}\nSentiment:"


def prompt(template):
    head, _, tail = template.partition("{text}")
    return Prompt(head=head, tail=tail)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


def rows(*texts):
    return pa.table({"text": pa.array(texts, pa.large_string()), "label": pa.array([0] * len(texts), pa.int32())})


def ids_of(text, tokenizer, template, max_length):
    ((ids,), (full,)) = encode([text], tokenizer, prompt(template), max_length)
    return ids, full


def test_a_long_text_loses_its_end_and_keeps_its_frame(tokenizer):
    ids, full = ids_of("good " * 50, tokenizer, FRAME, 40)
    text = tokenizer.decode(ids)
    assert len(ids) == 40
    assert full == len(tokenizer(FRAME.replace("{text}", "good " * 50))["input_ids"])
    assert text.startswith("Review: good")
    assert text.endswith("\nSentiment:")


def test_a_bare_text_is_cut_at_the_end(tokenizer):
    assert tokenizer.decode(ids_of("abcdef", tokenizer, "{text}", 4)[0]) == "abcd"


@pytest.mark.parametrize("text", ["{label} {0}", "שלום 👍🏽", "a\0b", "=1+1", "\ufeffx"])
def test_odd_texts_are_text(tokenizer, text):
    ids, _ = ids_of(text, tokenizer, FRAME, 100)
    assert ids == tokenizer(FRAME.replace("{text}", text))["input_ids"]
    assert text in tokenizer.decode(ids)


def test_token_ids_are_those_of_the_tokenizer(tokenizer, vocabulary):
    texts = ["a warm and FUNNY film", "", "naïve — 北京", "x" * 300]
    for one in (tokenizer, *map(vocabulary, ("llama2", "llama3", "gpt2"))):
        expected = one([FRAME.replace("{text}", text) for text in texts])["input_ids"]
        assert encode(texts, one, prompt(FRAME), 10_000)[0] == expected


def test_a_text_cannot_end_its_own_turn(tokenizer):
    end = tokenizer.eos_token
    assert tokenizer.eos_token_id in encode([f"a{end}b"], tokenizer, prompt(FRAME), 500)[0][0]
    answered = Prompt(head=f"Say{end}: ", tail=f"{end}?", example_answer="x", answers=[[5], [7]])
    (plain, odd), lengths = encode(["a film", f"a{end}b"], tokenizer, answered, 500)
    assert plain == tokenizer(f"Say{end}: a film{end}?")["input_ids"]
    assert tokenizer.decode(odd) == f"Say{end}: a{end}b{end}?"
    assert odd.count(tokenizer.eos_token_id) == 2
    assert lengths == [len(plain), len(odd)]
    assert encode(["a film"], tokenizer, answered, 500)[0] == [plain]  # the tokenizer is as it was


def files(folder, ending):
    return list((folder / "tokens").glob(f"*.{ending}"))


def test_tokens_are_cached_by_what_they_depend_on(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    tokenize(rows("a film"), tokenizer, prompt("{text}"), 50, 512, progress=False)
    tokenize(rows("a film"), tokenizer, prompt("{text}"), 50, 512, progress=False)
    assert len(files(tmp_path, "arrow")) == 1
    tokenize(rows("a film"), tokenizer, prompt("{text}!"), 50, 512, progress=False)
    tokenize(rows("a film"), tokenizer, prompt("{text}"), 40, 512, progress=False)
    tokenize(rows("b film"), tokenizer, prompt("{text}"), 50, 512, progress=False)
    assert len(files(tmp_path, "arrow")) == 4
    assert files(tmp_path, "partial") == []


def test_a_second_reading_does_not_tokenise(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    first = tokenize(rows("a film", "b"), tokenizer, prompt("{text}"), 50, 512, progress=False)
    monkeypatch.setattr("sentexp.data.tokens._write", lambda *_: pytest.fail("tokenised again"))
    again = tokenize(rows("a film", "b"), tokenizer, prompt("{text}"), 50, 512, progress=False)
    assert again.ids([1, 0]) == first.ids([1, 0])


def test_rows_are_found_over_many_batches(tokenizer, monkeypatch):
    monkeypatch.setattr("sentexp.data.tokens.BATCH", 7)
    texts = [f"text number {index}" for index in range(40)]
    tokens = tokenize(rows(*texts), tokenizer, prompt("{text}?"), 50, 512, progress=False)
    assert len(tokens) == 40
    assert [tokenizer.decode(ids) for ids in tokens.ids([39, 0, 7, 6])] == [f"{texts[row]}?" for row in (39, 0, 7, 6)]
    assert list(tokens.lengths) == [len(ids) for ids in tokens.ids(range(40))]


def test_cut_texts_are_counted(tokenizer):
    tokens = tokenize(rows("abcdef", "abcde", "ab"), tokenizer, prompt("{text}"), 5, 512, progress=False)
    assert list(tokens.text_lengths) == [6, 5, 2]
    assert list(tokens.lengths) == [5, 5, 2]
    assert list(tokens.cut) == [True, False, False]


def test_the_frame_is_no_part_of_the_maximum_length(tokenizer):
    tokens = tokenize(rows("abcdef", "ab"), tokenizer, prompt(FRAME), 5, 512, progress=False)
    assert [tokenizer.decode(ids) for ids in tokens.ids([0, 1])] == [
        FRAME.replace("{text}", t) for t in ("abcde", "ab")
    ]
    assert list(tokens.text_lengths) == [6, 2]


def test_the_positions_of_the_model_are_kept_for_the_frame_and_the_answer(tokenizer):
    answered = Prompt(head="Review: ", tail="\nSentiment:", example_answer="no", answers=[[5, 6], [7, 8]], end=[8])
    frame = len("Review: \nSentiment:")
    tokens = tokenize(rows("abcdef"), tokenizer, answered, 100, frame + 4 + 2 + 3, progress=False)
    assert tokenizer.decode(tokens.ids([0])[0]) == "Review: abcd\nSentiment:"
    assert tokens.cut.all()
    assert tokens.limit - tokens.frame == 4


def test_a_failure_in_mid_way_leaves_no_file_under_its_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    monkeypatch.setattr("sentexp.data.tokens.BATCH", 1)
    calls = []

    def fail_at_the_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr("sentexp.data.tokens.encode", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            tokenize(rows("a film", "b"), tokenizer, prompt("{text}"), 50, 512, progress=False)
    assert files(tmp_path, "arrow") == []
    assert len(tokenize(rows("a film", "b"), tokenizer, prompt("{text}"), 50, 512, progress=False)) == 2
    assert files(tmp_path, "partial") == []


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_a_damaged_file_is_made_again(damage, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    first = tokenize(rows("a film", "b"), tokenizer, prompt("{text}"), 50, 512, progress=False).ids([0, 1])
    (file,) = files(tmp_path, "arrow")
    content = file.read_bytes()
    place = content.index(b"".join(token.to_bytes(4, "little") for token in first[0]))
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    file.write_bytes({"empty": b"", "cut": content[:200], "changed": changed}[damage])
    assert tokenize(rows("a film", "b"), tokenizer, prompt("{text}"), 50, 512, progress=False).ids([0, 1]) == first
    assert file.read_bytes() == content
    assert capsys.readouterr().err == f"{file} is damaged: it is made again.\n"


PROCESS = """
import os, sys, time
import pyarrow as pa
from transformers import PreTrainedTokenizerFast
from sentexp.data import tokens
from sentexp.data.prompts import Prompt
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
tokens.BATCH = 20
write, encode = tokens._write, tokens.encode
def stop_at_the_last(batch, *given):
    if texts[-1] in batch:
        time.sleep(600)
    return encode(batch, *given)
def say(word):
    os.write(1, f"{os.getpid()} {word}\\n".encode())  # in one go, whatever the other process writes
def told(*given):
    say("writing")
    write(*given)
tokens._write = told
texts = [f"text number {index}" for index in range(4_000)]
table = pa.table({"text": pa.array(texts, pa.large_string()), "label": pa.array([0] * len(texts), pa.int32())})
for line in sys.stdin:  # a process for each line: importing takes longer than all of its work
    if os.fork() == 0:
        if line == "never end\\n":
            tokens.encode = stop_at_the_last
        rows = len(tokens.tokenize(table, tokenizer, Prompt(), 50, 512, progress=False))
        say(rows)
        os._exit(0)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""


@pytest.mark.slow
def test_a_killed_tokenisation_is_done_again_and_two_at_once_do_it_once(tokenizer, command_environment, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    environment = {**command_environment, "SENTEXP_CACHE": str(tmp_path)}
    words = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1) as parent:
        parent.stdin.write("never end\n")
        killed, said = parent.stdout.readline().split()
        assert said == "writing"
        while not files(tmp_path, "partial"):
            time.sleep(0.01)
        os.kill(int(killed), signal.SIGKILL)
        assert files(tmp_path, "arrow") == []
        parent.stdin.write("start\nstart\n")
        parent.stdin.close()
        lines = [line.split() for line in parent.stdout]
    said = {process: [word for other, word in lines if other == process] for process, _ in lines}
    assert sorted(said.values()) == [["4000"], ["writing", "4000"]]
    assert killed not in said
    assert len(files(tmp_path, "arrow")) == 1
    assert files(tmp_path, "partial") == []


def test_no_room_for_the_text_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"task.template leaves no room for the text: the prompt has 19 tokens"):
        tokenize(rows("a film"), tokenizer, prompt(FRAME), 10, 19, progress=False)
