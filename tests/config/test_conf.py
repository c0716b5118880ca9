"""Every option of every group composes, alone and together."""

import itertools

import pytest

from sentexp.config import TEMPLATE_GROUP, conf_dir, load_config, method_name

GROUPS = sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir() and folder.name != TEMPLATE_GROUP)
TEMPLATES = sorted((conf_dir() / TEMPLATE_GROUP).glob("*.yaml"))
ELSEWHERE = ("csv", "file", "sentiment140", "semeval2017", "yelp", "amazon_reviews", "goemotions")
NEEDS = {("data", name): ["data.path=reviews.csv"] for name in ELSEWHERE} | {("peft", "other"): ["peft.type=PSOFT"]}
"""What an option cannot know."""
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((conf_dir() / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group, option):
    assert load_config(f"{group}={option}", *NEEDS.get((group, option), []))


WAYS = ("none", "head", "full", "bitfit", "lora", "qlora", "dora", "ia3", "vera")
"""An option of `peft` of each class, and those that people use most."""


DATA = [option for group, option in OPTIONS if group == "data"]
FIRST = {*zip(itertools.cycle(WAYS), DATA, strict=False), *zip(WAYS, itertools.cycle(DATA), strict=False)}
"""Pairs that hold every way and every data set; `make slow` has all pairs."""


@pytest.mark.parametrize(
    ("peft", "data"),
    [pytest.param(*pair, marks=[] if pair in FIRST else pytest.mark.slow) for pair in itertools.product(WAYS, DATA)],
)
def test_ways_of_training_and_data_sets_combine(peft, data):
    config = load_config(f"peft={peft}", f"data={data}", *NEEDS.get(("data", data), []))
    assert method_name(config.peft) == peft
    assert config.data.name == data


@pytest.mark.parametrize("template", [file.stem for file in TEMPLATES])
def test_every_template_is_chosen_by_its_name(template):
    task = load_config("task=causal_lm", f"task.template={template}").task
    assert "{text}" in task.template.user


def test_names_inside_files_are_the_names_of_files():
    for group, option in OPTIONS:
        if group in ("model", "data"):
            config = load_config(f"{group}={option}", *NEEDS.get((group, option), []))
            assert getattr(config, group).name == option


def test_there_is_no_code_in_conf():
    assert not list(conf_dir().rglob("*.py"))


def test_every_preset_says_question_command_cost_and_score():
    for file in (conf_dir() / "experiment").glob("*.yaml"):
        header = file.read_text()
        assert all(word in header for word in ("# Question:", f"experiment={file.stem}", "# Cost:", "score:")), (
            file.name
        )


def test_every_option_says_what_it_is():
    for group, option in OPTIONS:
        assert (conf_dir() / group / f"{option}.yaml").read_text().startswith("# "), f"{group}/{option}"
