"""The documentation is true: commands compose, code runs, links lead somewhere, the reference is up to date."""

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import mlflow
import pytest
import yaml
from finished_runs import checked_here, many_reviews  # noqa: F401 (fixtures)
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from methods import plus
from omegaconf import OmegaConf
from sweep_runs import quick, sentexp  # noqa: F401 (fixtures)

from sentexp.cli.commands import COMMANDS
from sentexp.config import conf_dir, register_schemas
from sentexp.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
SHELL = {"cat", "cd", "curl", "eval", "git", "source"}
"""Programs that are not ours."""
SETTINGS = {
    "OMP_NUM_THREADS",
    "SWEEP",
    "SECONDS",
    "PYTHON",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MLFLOW_TRACKING_URI",
}


def blocks_of(page: str, language: str) -> list[str]:
    """Return the fenced blocks in a language, of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the fenced blocks in a language, of all pages."""
    return [block for page in PAGES for block in blocks_of(page, language)]


def lines() -> list[str]:
    """Return the lines of the shell blocks, without comments, continued lines as one."""
    joined = [block.replace("\\\n", " ") for block in blocks("sh")]
    bare = {re.sub(r" +# .*$", "", line).strip() for block in joined for line in block.splitlines()}
    return sorted(line for line in bare if line and not line.startswith("#"))


LINES = lines()


def composed_words(line: str) -> list[str] | None:
    """Return the words that sentexp gets, from a line that starts it."""
    started = re.match(r"(?:torchrun .*?-m|(?:srun .*?)?python -m) sentexp\b(.*)$", line)
    return None if started is None else shlex.split(re.sub(r" < \S+$", "", started[1]))


COMPOSED = [line for line in LINES if composed_words(line) is not None]


def test_there_are_commands_for_everything():
    assert len(COMPOSED) > 60
    assert all(
        any(line.startswith(f"python -m sentexp {name}") for line in LINES) for name in COMMANDS if name != "train"
    )


@pytest.mark.parametrize("line", COMPOSED)
def test_every_command_composes(line, tmp_path):
    words = composed_words(line)
    assert words is not None
    words = [word.replace("<folder>", "/somewhere") for word in words]
    if "--text" in words:  # the command line takes it and its sentence before hydra
        del words[words.index("--text") : words.index("--text") + 2]
    overrides = plus([first_of(word) for word in words if "=" in word and not word.startswith("--")])
    assert all(
        word in COMMANDS or word.startswith("--") or word in ("job", "mine", "-v") for word in words if "=" not in word
    )
    if "mine" in words:
        write_examples(tmp_path)
        overrides.append(f"hydra.searchpath=[file://{tmp_path}]")
    command = COMMANDS.get(next(iter(words), ""), COMMANDS["train"])
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(command.root, overrides)
    if "--help" not in words:
        check_values(config)
    if "mine" in words:
        assert config.data.labels == ["bad", "good"]
        assert config.peft.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert config.peft.r == 8


def check_values(config):
    """Let the classes check what was composed: ranges, and rules between keys."""
    try:
        OmegaConf.to_object(config)
    except Exception as error:
        raise AssertionError(str(error)) from error


def first_of(word):
    """Return an override with the first of the values that are swept."""
    override = OverridesParser.create().parse_override(word)
    if override.is_interval_sweep():
        return f"{override.get_key_element()}={override.value().start}"
    if override.is_sweep_override():
        return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return word


def write_examples(folder):
    """Write the YAML files of the documentation that a folder `mine` holds."""
    for block in blocks("yaml"):
        if named := re.match(r"# mine/(\S+)", block):
            target = folder / named[1]
            target.parent.mkdir(exist_ok=True)
            target.write_text(block)


@pytest.mark.parametrize("line", [line for line in LINES if line not in COMPOSED])
def test_every_other_line_names_what_exists(line):
    words = shlex.split(line)
    while (name := words[0].partition("=")[0]) in SETTINGS:
        words.pop(0)
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif program == "python" and words[1].startswith("benchmarks/"):
        script = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in script for word in words if word.startswith("--"))
    elif program == "python":
        assert words[1:3] == ["-m", "pytest"]
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.search(r"\[([\w,]+)\]", line)
        assert words[1] == "install"
        assert named is None or set(named[1].split(",")) <= set(extras)
    else:
        assert program in SHELL, name


def test_blocks_have_a_language_that_is_checked():
    for name, text in PAGES.items():
        marks = re.findall(r"^```(\w*)$", text, re.MULTILINE)
        assert set(marks[::2]) <= {"sh", "yaml", "python", "text", "slurm"}, name
        assert set(marks[1::2]) <= {""}, f"{name}: a block is not closed"


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_are_yaml(block):
    assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.slow
def test_python_blocks_run(sentexp, command_line, many_reviews, store, monkeypatch):  # noqa: F811 (fixtures)
    """In a folder with a sweep and a registered model, as the pages say; those of a page one after the other."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sentexp("--multirun", "peft.r=4,16", f"data.path={many_reviews}")[0] == 0
    assert command_line("register", "run=best", "name=reviews")[0] == 0
    assert len(blocks("python")) >= 3
    for page in PAGES:
        names = {"__name__": "example"}
        for block in blocks_of(page, "python"):
            exec(compile(block.replace("sqlite:///mlflow.db", store), page, "exec"), names)
    mlflow.set_tracking_uri(None)


def test_links_lead_somewhere():
    """Between pages, to their headings, and to pictures; `mkdocs build --strict` also checks the table of contents."""
    for name, text in PAGES.items():
        page = (ROOT / name).parent
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            path, _, anchor = target.partition("#")
            if path.startswith(("http://", "https://")):
                continue
            file = (page / path).resolve() if path else ROOT / name
            assert file.exists(), f"{name}: {target}"
            assert not name.startswith("docs/") or file.is_relative_to(ROOT / "docs"), f"{name}: {target} leaves docs/"
            if anchor:
                assert anchor in anchors(file.read_text()), f"{name}: {target}"


def anchors(text):
    """Return the anchors that Markdown gives the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_page_is_in_the_table_of_contents():
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2])
    assert sorted(f"docs/{page}" for page in named) == sorted(page for page in PAGES if page.startswith("docs/"))


def test_what_was_run_where_is_told_alike():
    """The README and the page of figures hold the same table."""
    table = re.search(r"^\| what \| where it was run \|\n(?:\|.*\n)+", PAGES["README.md"], re.MULTILINE)
    assert table is not None
    assert table[0] in PAGES["docs/benchmarks.md"]


def literals() -> list[str]:
    """Return the texts in the sources, with `...` for what is filled in."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_in_troubleshooting_exist():
    texts = literals()
    messages = re.findall(r"^### `(.*)`$", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert len(messages) > 25
    for message in messages:
        parts = [part for part in re.split(r"'?\.\.\.'?", message) if len(part.strip(" :,;.")) > 1]
        pattern = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


def test_pages_are_plain():
    """One heading of the first level each; the README is short."""
    assert PAGES["README.md"].count("\n") <= 150
    for name, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1, name


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """Return the script that writes the reference."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(generate):
    for name, text in generate.pages().items():
        stale = f"docs/reference/{name} is out of date: run `make reference`"
        assert PAGES[f"docs/reference/{name}"] == text, stale


def test_the_reference_names_every_option(generate):
    text = generate.presets()
    for file in conf_dir().glob("*/*.yaml"):
        group = f"task.{file.parent.name}" if file.parent.name == "template" else file.parent.name
        assert f"`{file.stem}`" in text or f"### {group}={file.stem}\n" in text, file


def test_the_reference_names_every_key(generate):
    text = generate.configuration()
    for line in ["peft=lora", "peft=ia3", "task=causal_lm", "data=csv", "data=fpb", "data=tweets", "data=multilingual"]:
        register_schemas()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", [line]))
        for key in leaves(config):
            hidden = key.endswith(".name") or re.match(
                r"data\.files|data\.package\.|model\.package|sweep\.(p|s|t)", key
            )
            assert hidden or f"| `{key}` |" in text, key


def leaves(config, prefix=""):
    for key, value in config.items():
        nested = isinstance(value, dict) and key not in ("labels", "package", "random", "files")
        yield from leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]


def test_keys_in_the_text_exist():
    """Code such as `trainer.max_tokens=1024` names a key of some configuration, wherever it is written."""
    text = PAGES["docs/reference/configuration.md"]
    keys = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for name, page in PAGES.items():
        for key in re.findall(r"`((?:\w+\.)+\w+)(?:=[^`]*)?`", page):
            if key.partition(".")[0] in groups - {"hydra", "data", "sweep"} and not key.endswith(
                (".py", ".md", ".json")
            ):
                assert key in keys, f"{name}: {key}"


def test_an_unknown_key_would_be_seen():
    register_schemas()
    with pytest.raises(Exception, match="nothing"), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        compose("config", ["trainer.nothing=1"])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["optim.lr=-1"])
    with pytest.raises((UserError, AssertionError), match="above 0"):
        check_values(config)
