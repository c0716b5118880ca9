"""Tables with random damage and files made to harm: read, or refused in a sentence, in bounded memory.

`make soak` tries 1,000 tables, `make slow` a tenth. A seed repeats them.
"""

import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

SHARE, SEED = float(os.environ.get("SOAK", "0.1")), int(os.environ.get("SEED", "0"))
TABLES = round(SHARE * 1000)
ODD = [
    b"\0",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"\r",
    b"\r\n",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b",",
    b"\t",
    b"{",
    b"]",
    b"x" * 70_000,
]
ODD += ["\u202e".encode(), "\u2028".encode(), b"\x1a", b"1e999", b"null", b"=HYPERLINK(1)", b"PK\x03\x04", b"\x1f\x8b"]
GIB = 1 << 30


def written(dice):
    """Return a table's bytes and the ending of its name."""
    texts = [f"a {dice.choice(['fine', 'poor'])} film {number}" for number in range(60)]
    frame = pd.DataFrame({"text": texts, "label": [number % 2 for number in range(60)]})
    csv = frame.to_csv(index=False)
    writers = {
        ".csv": lambda out: out.write(csv.encode()),
        ".tsv": lambda out: frame.to_csv(out, index=False, sep="\t"),
        ".jsonl": lambda out: frame.to_json(out, orient="records", lines=True),
        ".json": lambda out: frame.to_json(out, orient="records"),
        ".parquet": frame.to_parquet,
        ".csv.gz": lambda out: out.write(gzip.compress(csv.encode())),
        ".zip": lambda out: _zip(out, csv),
        ".xlsx": lambda out: frame.to_excel(out, index=False, engine="openpyxl"),
        ".ods": lambda out: frame.to_excel(out, index=False, engine="odf"),
        ".txt": lambda out: out.write("\n".join(f"__label__{n % 2} {text}" for n, text in enumerate(texts)).encode()),
    }
    ending, out = dice.choice([*writers]), io.BytesIO()
    writers[ending](out)
    return out.getvalue(), ending


def _zip(out, text):
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("table.csv", text)


def damaged(data, dice):
    """Return bytes of which some are changed, gone, twice there, or odd."""
    for _ in range(dice.randint(1, 5)):
        place, length = dice.randrange(len(data) + 1), dice.randint(1, 200)
        match dice.choice(["flip", "delete", "repeat", "odd", "cut"]):
            case "flip" if place < len(data):
                data = data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
            case "delete":
                data = data[:place] + data[place + length :]
            case "repeat":
                data = data[:place] + data[place : place + length] * dice.randint(2, 9) + data[place + length :]
            case "odd":
                data = data[:place] + dice.choice(ODD) + data[place:]
            case "cut" if dice.random() < 0.2:
                data = data[:place]
    return data


def test_damaged_tables_are_read_or_refused_in_a_sentence(command_line, tmp_path, capsys):
    outcomes = {0: 0, 1: 0}
    for number in range(TABLES):
        dice = random.Random(f"{SEED} table {number}")
        data, ending = written(dice)
        file = tmp_path / f"table{number}{ending}"
        file.write_bytes(damaged(data, dice))
        code, _, said = command_line("audit", "data=csv", f"data.path={file}", "model=tiny", "tracking=none")
        outcomes[code] += 1
        assert "Traceback" not in said, f"table {number}: {said}"
        if code:
            assert said.startswith("sentexp: "), f"table {number}: {said}"
            assert said.strip().count("\n") <= 1, f"table {number}: {said}"
        file.unlink()
    with capsys.disabled():
        print(f"\n{TABLES} damaged tables: {outcomes[0]} read, {outcomes[1]} refused in a sentence")


BOUNDED = f"""
# The command with at most {6} GiB of addresses.
import resource
resource.setrlimit(resource.RLIMIT_AS, ({6 * GIB}, {6 * GIB}))
from sentexp.cli.main import main
main()
"""


class Bomb:
    """What a pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def _safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tokenizer(merges, vocab=None):
    """Return a tokenizer with so many merges, of words that it has, or of some that it lacks."""
    words = [f"{number:x}" for number in range(merges)]
    every = {word: number for number, word in enumerate([*"ab", *(f"a{word}" for word in words), *words])}
    model = {"type": "BPE", "vocab": vocab or every, "merges": [f"a {word}" for word in words]}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


def _gguf(tensors, fields, *parts):
    """Return a GGUF file that says how many tensors and fields follow."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(parts)


def _words(text):
    return struct.pack("<Q", len(text)) + text


def _field(key, value):
    """Return a field of GGUF: a text, or an unsigned number of 32 bits."""
    return _words(key) + (
        struct.pack("<I", 8) + _words(value) if isinstance(value, bytes) else struct.pack("<II", 4, value)
    )


LLAMA = _field(b"general.architecture", b"llama")
LARGE = b"".join(
    _field(b"llama." + key, 1 << 31) for key in (b"block_count", b"embedding_length", b"feed_forward_length")
)
GGUF, WEIGHTS = "model.gguf", "model.safetensors"
HOSTILE = {
    "a header longer than the file": (WEIGHTS, (1 << 62).to_bytes(8, "little") + b"{}"),
    "a header of 90 MB": (WEIGHTS, (90_000_000).to_bytes(8, "little") + b"{" + b" " * 90_000_000),
    "tensors beyond the end": (
        WEIGHTS,
        _safetensors({"model.norm.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    ),
    "shapes whose product overflows": (
        WEIGHTS,
        _safetensors(
            {"model.norm.weight": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, b"1234"
        ),
    ),
    "an unknown type of numbers": (
        WEIGHTS,
        _safetensors({"model.norm.weight": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    ),
    "a pickle under another name": (WEIGHTS, pickle.dumps(Bomb())),
    "nothing": (WEIGHTS, b""),
    "GGUF of more tensors and fields than bytes": (GGUF, _gguf(1 << 62, 1 << 62)),
    "GGUF with a text that is longer than the file": (GGUF, _gguf(0, 1, struct.pack("<Q", 1 << 60), b"abc")),
    "GGUF with a list that is longer than the file": (
        GGUF,
        _gguf(0, 1, _words(b"a"), struct.pack("<IIQ", 9, 0, 1 << 40)),
    ),
    "GGUF with a list that is nested 100,000 deep": (
        GGUF,
        _gguf(0, 1, _words(b"a"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 100_000),
    ),
    "GGUF with a tensor beyond the end": (
        GGUF,
        _gguf(1, 1, LLAMA, _words(b"t"), struct.pack("<I4QIQ", 4, *[1 << 40] * 4, 0, 0), bytes(64)),
    ),
    "GGUF of two billion layers": (GGUF, _gguf(0, 4, LLAMA, LARGE, bytes(64))),
    "a tokenizer that is no JSON": ("tokenizer.json", b"\x80\x04."),
    "a tokenizer without a model": ("tokenizer.json", b'{"version": "1.0"}'),
    "a tokenizer nested a million deep": ("tokenizer.json", b"[" * 1_000_000),
    "a tokenizer of two million merges of nothing": ("tokenizer.json", _tokenizer(2_000_000, {"a": 0})),
    "a tokenizer of a million words": ("tokenizer.json", _tokenizer(1_000_000)),
    "a configuration of a trillion words": ("config.json", {"vocab_size": 10**12}),
    "a configuration of a billion layers": ("config.json", {"num_hidden_layers": 10**9}),
    "a configuration of negative sizes": ("config.json", {"hidden_size": -64}),
    "a configuration that is a list": ("config.json", b"[1]"),
    "a configuration that names code": (
        "config.json",
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_that_is_made_to_harm_is_refused_in_a_sentence(name, llama, reviews, fork, tmp_path):
    file, content = HOSTILE[name]
    model = shutil.copytree(llama, tmp_path / "model")
    (model / "mine.py").write_text("import os\nos.mkdir('harmed')\n")
    if isinstance(content, dict):
        content = json.dumps(json.loads((model / file).read_text()) | content).encode()
    (model / file).write_bytes(content)
    bounded = tmp_path / "bounded.py"
    bounded.write_text(BOUNDED)
    place = model / file if file == GGUF else model
    words = [f"model.path={place}", "model=tiny", "model.random=null", "data=sst2", f"data.path={reviews}"]
    words += [
        "data.splits.validation=validation",
        "data.splits.test=test",
        "tracking=none",
        "trainer.progress_bar=false",
    ]
    code = fork(tmp_path / "run", str(bounded), *words).wait()
    said = (tmp_path / "run" / "console.txt").read_text()
    assert code == 1, said
    assert "Traceback" not in said
    assert said.count("sentexp: ") == 1, said
    assert not list(tmp_path.rglob("harmed"))


@pytest.mark.parametrize("target", ["/dev/zero", "nowhere"])
def test_a_link_to_a_device_or_to_nothing_is_not_read(target, command_line, tmp_path):
    for label in ("neg", "pos"):
        (tmp_path / "reviews" / label).mkdir(parents=True)
        for number in range(30):
            (tmp_path / "reviews" / label / f"{number}.txt").write_text(f"a {label} film, number {number}")
    (tmp_path / "reviews" / "pos" / "link.txt").symlink_to(target)
    code, _, said = command_line("audit", "data=csv", f"data.path={tmp_path / 'reviews'}", "model=tiny")
    assert code == 1
    assert said.startswith("sentexp: ")
    assert "link.txt is not a file" in said
