"""The README is true: its commands compose, its tables are whole, its YAML examples work."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from sentexp.cli.commands import COMMANDS
from sentexp.config import TEMPLATE_GROUP, conf_dir, register_schemas

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WRITTEN = sorted(set(re.findall(r"^ +python -m sentexp(.*?)(?: +#.*)?$", README, re.MULTILINE)))


@pytest.mark.parametrize("command", WRITTEN)
def test_every_command_composes(command, tmp_path):
    words = shlex.split(re.sub(r" < \S+$", "", command).replace("<folder>", "/somewhere"))
    if "--text" in words:  # the command line takes it and its sentence before hydra
        del words[words.index("--text") : words.index("--text") + 2]
    overrides = [first_of(word) for word in words if "=" in word]
    assert all(
        word in COMMANDS or word.startswith("--") or word in ("job", "mine") for word in words if "=" not in word
    )
    if "mine" in words:
        write_examples(tmp_path)
        overrides.append(f"hydra.searchpath=[file://{tmp_path}]")
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(COMMANDS.get(next(iter(words), ""), COMMANDS["train"]).root, overrides)
    if "mine" in words:
        assert config.data.labels == ["bad", "good"]
        assert config.peft.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert config.peft.r == 8


def first_of(word):
    """Return an override with the first of the values that are swept."""
    override = OverridesParser.create().parse_override(word)
    if override.is_interval_sweep():
        return f"{override.get_key_element()}={override.value().start}"
    if override.is_sweep_override():
        return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return word


def write_examples(folder):
    for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL):
        target = folder / re.match(r"# mine/(\S+)", block).group(1)
        target.parent.mkdir(exist_ok=True)
        target.write_text(block)


def test_the_table_of_groups_names_every_option():
    for group in (folder for folder in conf_dir().iterdir() if folder.is_dir()):
        name = f"task.{group.name}" if group.name == TEMPLATE_GROUP else group.name
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", README.partition("## Keys")[0], re.MULTILINE)
        for file in group.glob("*.yaml"):
            assert f"`{file.stem}`" in row, f"{group.name}={file.stem}"


def test_the_keys_that_are_explained_exist():
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [])
    from omegaconf import OmegaConf

    table = README.partition("| key | meaning |")[2].partition("\n\n")[0]
    keys = re.findall(r"`((?:peft|optim|trainer|data|task|tracking)\.\w+|seed|baseline|output_dir)", table)
    assert len(keys) > 30
    for key in keys:
        assert OmegaConf.select(config, key, default="absent") != "absent", key


def test_the_keys_of_answering_exist():
    from sentexp.config import load_config

    table = README.partition("## Answering")[2].partition("| key | meaning |")[2].partition("\n\n")[0]
    keys = re.findall(r"`task\.(\w+)`", table)
    assert len(keys) > 8
    task = load_config("task=causal_lm").task
    assert all(hasattr(task, key) for key in keys)


def test_make_has_the_targets_that_are_named():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^ +make ([a-z]+)", (ROOT / document).read_text(), re.MULTILINE):
            assert target in targets, target
