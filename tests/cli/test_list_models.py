"""`python -m sentexp models`: every option, its size, its licence, and what it takes in memory."""

import pytest

from sentexp.cli.list_models import models, read_option
from sentexp.config import conf_dir, load_config
from sentexp.errors import UserError

FILES = sorted((conf_dir() / "model").glob("*.yaml"))


def test_every_option_is_listed_the_smallest_first(capsys):
    models(load_config("model=bert_base"))
    said = capsys.readouterr().out
    output, _, architectures = said.partition("* is chosen")
    cells_of = [line.split() for line in architectures.splitlines()]
    for cells in (
        ["deberta-v2", "encoder", *["yes"] * 2],
        ["mpnet", "encoder", *["yes"] * 4],
        ["roberta", "encoder", *["yes"] * 4],
        ["modernbert", "encoder", *["yes"] * 3],
        ["qwen3", "decoder", *["yes"] * 6],
        ["smollm3", "decoder", *["yes"] * 5],
        ["gpt2", "decoder", *["yes"] * 3],
    ):
        assert cells in cells_of
    rows = [line.split()[0] for line in output.splitlines()[1:] if line[:2].strip()]  # not the end of a long licence
    named = [row.removesuffix("*") for row in rows]
    assert sorted(named) == [file.stem for file in FILES]
    assert [row for row in rows if row.endswith("*")] == ["bert_base*"]
    sizes = {file.stem: read_option(file).size for file in FILES}
    assert [sizes[name] for name in named] == sorted(sizes.values())


def test_a_first_line_says_size_kind_and_licence():
    found = {file.stem: read_option(file) for file in FILES}
    assert (found["bert_base"].kind, found["bert_base"].size, found["bert_base"].gated) == ("encoder", 110, False)
    assert (found["llama3_1_8b"].size, found["llama3_1_8b"].gated) == (8000, True)
    assert found["llama3_1_8b"].licence == "Llama 3.1 community licence"
    assert found["bert_base"].licence == "Apache-2.0"
    assert found["llama3_1_8b"].gib("lora") == 8e9 * 2 / 2**30


def test_another_first_line_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# My model.\nname: mine\n")
    with pytest.raises(UserError, match=r"mine.yaml must begin as .*: encoder, 110 million parameters, Apache-2.0"):
        read_option(file)
