"""Tables with random damage and files made to harm: read, or refused in a sentence, in bounded memory.

`make soak` tries 1,000 tables, `make slow` a tenth. A seed repeats them.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import struct
import zipfile

import pandas as pd
import pyarrow as pa
import pytest
from soak import SEED, share_of

pytestmark = pytest.mark.slow

TABLES = share_of(1000)
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
GIBS = 6


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


def test_damaged_tables_are_read_or_refused_in_a_sentence(command_line, tmp_path, soaked):
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
    soaked(TABLES, "damaged tables", f"{outcomes[0]} read, {outcomes[1]} refused in a sentence")


BOUNDED = f"""
# The command with so many GiB of addresses.
import resource
resource.setrlimit(resource.RLIMIT_AS, ({GIBS << 30}, {GIBS << 30}))
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


@pytest.fixture
def bounded(fork, tmp_path, soaked):
    """Return a function that runs a command in bounded memory, which has to refuse in a sentence, and returns that."""
    program = tmp_path / "bounded.py"
    program.write_text(BOUNDED)

    def refused(*words):
        code = fork(tmp_path / "run", str(program), *words).wait()
        said = (tmp_path / "run" / "console.txt").read_text()
        assert code == 1, said
        assert "Traceback" not in said
        assert said.count("sentexp: ") == 1, said
        soaked(1, "files made to harm", f"refused in a sentence, within {GIBS} GiB")
        return said

    return refused


@pytest.fixture
def model(llama, reviews, tmp_path):
    """Return a copy of a whole model, and the words of a run of what lies at a path."""
    folder = shutil.copytree(llama, tmp_path / "model")

    def words(path):
        return [
            f"model.path={path}", "model=tiny", "model.random=null", "data=sst2", f"data.path={reviews}",
            "data.splits.validation=validation", "data.splits.test=test", "tracking=none", "trainer.progress_bar=false",
        ]  # fmt: skip

    return folder, words


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_that_is_made_to_harm_is_refused_in_a_sentence(name, model, bounded, tmp_path):
    file, content = HOSTILE[name]
    folder, words = model
    (folder / "mine.py").write_text("import os\nos.mkdir('harmed')\n")
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content).encode()
    (folder / file).write_bytes(content)
    bounded(*words(folder / file if file == GGUF else folder))
    assert not list(tmp_path.rglob("harmed"))


@pytest.mark.parametrize("file", ["config.json", WEIGHTS, GGUF])
def test_a_file_of_a_model_that_is_a_link_to_a_device_is_refused_in_a_sentence(file, model, bounded):
    folder, words = model
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to("/dev/zero")
    bounded(*words(folder / file if file == GGUF else folder))


MIB = b"a" * (1 << 20)
ODS = (
    '<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0" '
    'xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"><office:body><office:spreadsheet>'
    '<table:table table:name="a"><table:table-row table:number-rows-repeated="1000000">'
    '<table:table-cell table:number-columns-repeated="16000"><text:p>a cell that is there often</text:p>'
    "</table:table-cell></table:table-row></table:table></office:spreadsheet></office:body></office:document-content>"
)
LAUGHS = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))


def _archive(**members):
    """Return a zip; a number instead of a text is what it says the size of an empty file is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, "" if isinstance(content, int) else content)
            if isinstance(content, int):
                archive.filelist[-1].file_size = content
    return out.getvalue()


def _workbook(**changed):
    """Return an .xlsx of which some files are others."""
    out = io.BytesIO()
    pd.DataFrame({"text": ["a"], "label": [1]}).to_excel(out, index=False, engine="openpyxl")
    with zipfile.ZipFile(out) as archive:
        return _archive(**{name: archive.read(name) for name in archive.namelist()} | changed)


SHEET = "xl/worksheets/sheet1.xml"
BOMBS = {
    "x.csv.gz": lambda: gzip.compress(MIB) * 1100,
    "x.csv.bz2": lambda: bz2.compress(MIB) * 1100,
    "x.csv.xz": lambda: lzma.compress(MIB) * 1100,
    "x.csv.zst": lambda: bytes(pa.compress(MIB, "zstd", asbytes=True)) * 1100,
    "x.zip": lambda: _archive(**{"x.csv": MIB * 1100}),
    "larger.xlsx": lambda: _workbook(**{SHEET: 1 << 40}),
    "lying.xlsx": lambda: _workbook(**{"xl/sharedStrings.xml": 0, SHEET: 0}),
    "laughing.xlsx": lambda: _workbook(
        **{SHEET: f'<!DOCTYPE worksheet [<!ENTITY e0 "a">{LAUGHS}]><worksheet>&e29;</worksheet>'}
    ),
    "repeated.ods": lambda: _archive(**{"content.xml": ODS}),
    "laughing.ods": lambda: _archive(
        **{"content.xml": f'<!DOCTYPE a [<!ENTITY e0 "a">{LAUGHS}]>' + ODS.replace("a cell", "&e29;")}
    ),
    "nested.json": lambda: b"[" * 5_000_000,
    "nested.jsonl": lambda: b'{"text":' * 2_000_000,
    "x.parquet": lambda: b"PAR1" + bytes(64) + (1 << 30).to_bytes(4, "little") + b"PAR1",
    "pickled.csv": lambda: pickle.dumps(Bomb()),
}
"""Small files that unpack to much, or say so."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_table_that_is_made_to_harm_is_refused_in_a_sentence(name, bounded, tmp_path):
    file = tmp_path / name
    file.write_bytes(BOMBS[name]())
    assert name in bounded("audit", "data=csv", f"data.path={file}", "model=tiny", "tracking=none")
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
