"""Whatever is typed over the real keys composes, or is refused in a sentence: never a traceback."""

import math
import sys

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from soak import SEED, share_of

from sentexp.cli import commands
from sentexp.cli.commands import COMMANDS
from sentexp.cli.main import main
from sentexp.config import conf_dir, register_schemas
from sentexp.sweeps.grid import GridSweeper

pytestmark = pytest.mark.slow

CASES = share_of(1000)
ODD = [
    "", "null", "true", "false", "0", "1", "-1", "2", "8", "1e-4", "0.5", "1e400", "nan", "-inf", "007", "1_000",
    "x", "X y", "auto", "all", "none", "best", "latest", "[]", "[a]", "[1,2]", "[[a],b]", "{}", "{a: 1}",
    "{1: negative, 5: positive}", "'it is'", "'", '"', "a'b", "a=b", "a,b", "1,2", "4,x", ",", "[a", "a]",
    "${seed}", "${nothing}", "${", "$x", "???", "glob(*)", "glob(x*)", "glob([a*,b*])", "choice(1,2)", "choice()",
    "range(1,3)", "range(1,1)", "interval(0,1)", "int(interval(4,8))", "tag(log,interval(1e-5,1e-3))",
    "shuffle(1,2)", "sort(3,1)", "str(1)", "int(x)", "~/x", "../x", "/dev/null", "~nobody/x", "é", "日本", "\\",
    "\\,", "%", "#", "@", "a:b", "x" * 300, "-", "--", "*", "a b c", "\t", "(", ")", "models:/a@b", "models:/",
    "https://a.b", "sqlite:///x.db", "utf-8", "klingon", "gpu", "cpu", "nf4", "lora", "head", "full",
]  # fmt: skip
STRAYS = [
    "foo",
    "=",
    "a.b",
    "-m",
    "--multirun",
    "--cfg",
    "--cfg=job",
    "--package",
    "--config-dir=nowhere",
    "--info",
    "-x",
    "",
    " ",
]
"""Words that are no overrides of a key."""


def keys_of(root):
    """Return the keys of a command's configuration, its groups among them, dotted."""
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(root)
    keys = ["experiment", "hydra/sweeper", "hydra/launcher", "task.template"]

    def walk(node, prefix=""):
        for key in node:
            keys.append(prefix + str(key))
            child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
            if OmegaConf.is_dict(child) and not child._is_none():
                walk(child, f"{prefix}{key}.")

    walk(config)
    return keys


OPTIONS = sorted({file.stem for file in conf_dir().glob("*/*.yaml")})
KEYS = {name: keys_of(command.root) for name, command in COMMANDS.items()}


@st.composite
def command_lines(draw):
    """Draw a command and what is typed after it."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    values = st.one_of(
        st.sampled_from(ODD), st.sampled_from(OPTIONS), st.integers(-3, 300).map(str), st.text(max_size=6)
    )
    key = st.one_of(st.sampled_from(KEYS[name]), st.sampled_from(KEYS[name]).map(lambda one: one[:-1] or one))
    override = st.tuples(st.sampled_from(["", "", "", "", "+", "++", "~"]), key, values).map(
        lambda one: f"{one[0]}{one[1]}={one[2]}"
    )
    word = st.one_of(override, override, override, override, key.map("~{}".format), st.sampled_from(STRAYS))
    words = draw(st.lists(word, min_size=1, max_size=4))
    return [name, *(["--multirun"] if draw(st.booleans()) else []), *words]


@pytest.fixture
def compose_only(monkeypatch, tmp_path):
    """Let the command line compose and check, and do nothing more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.Command, "run", lambda *_: math.nan)
    monkeypatch.setattr(GridSweeper, "_run", lambda *_: [])
    monkeypatch.setattr(GridSweeper, "plan", lambda *_: None)


@pytest.fixture
def fuzzed(soaked):
    """Add to the table at the end how many command lines were tried."""
    soaked(CASES, "odd command lines", "composed, or refused in a sentence")


@seed(SEED)
@settings(max_examples=CASES, database=None, suppress_health_check=list(HealthCheck))
@given(words=command_lines())
def test_what_is_typed_composes_or_is_refused_in_a_sentence(words, compose_only, fuzzed, capsys):
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(sys, "argv", ["sentexp", *words])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code:
        assert code in (1, 2), said
        assert said.startswith(("sentexp: ", "usage: ")), said
        assert said.strip().count("\n") <= 1, said
