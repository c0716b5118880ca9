"""The space of a search: hydra's words for it, its values, and what is refused."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sentexp.errors import UserError
from sentexp.search.space import Space


def space(*words):
    return Space(OverridesParser.create().parse_overrides(list(words)))


def test_hydras_words_become_optunas():
    found = space(
        "a=1,2,3",
        "b=choice(x,'y z')",
        "c=range(4,10,2)",
        "d=interval(0,1)",
        "e=int(interval(4,64))",
        "f=tag(log,interval(1e-5,1e-3))",
        "g=tag(log,int(interval(1,64)))",
        "h=7",
    )
    assert found.distributions() == {
        "a": CategoricalDistribution(("1", "2", "3")),
        "b": CategoricalDistribution(("x", "y\\ z")),
        "c": CategoricalDistribution(("4", "6", "8")),
        "d": FloatDistribution(0.0, 1.0),
        "e": IntDistribution(4, 64),
        "f": FloatDistribution(1e-5, 1e-3, log=True),
        "g": IntDistribution(1, 64, log=True),
    }
    assert found.fixed == {"h": "7"}


def test_of_two_words_for_a_key_the_later_counts():
    found = space("a=1,2", "b=1", "a=5", "b=3,4")
    assert found.fixed == {"a": "5"}
    assert list(found.dimensions) == ["b"]


def test_a_run_has_the_fixed_overrides_and_its_values():
    found = space("~peft", "+x=1", "optim.lr=interval(0.1,0.2)", "peft.r=4,8")
    values = {"optim.lr": 0.123456789, "peft.r": "8"}
    assert found.overrides(values) == ["~peft", "+x=1", "optim.lr=0.123456789", "peft.r=8"]
    assert found.name(values) == "lr=0.123 r=8"


def test_every_choice_and_both_ends_of_an_interval_stand_in_a_corner():
    corners = space("a=1,2,3", "b=interval(0.1,0.2)").corners()
    assert corners == [{"a": "1", "b": 0.1}, {"a": "2", "b": 0.1}, {"a": "3", "b": 0.1}, {"a": "1", "b": 0.2}]


def test_a_grid_is_in_the_order_of_a_sweep():
    assert space("a=1,2", "b=x,y").grid() == [
        {"a": "1", "b": "x"}, {"a": "1", "b": "y"}, {"a": "2", "b": "x"}, {"a": "2", "b": "y"},
    ]  # fmt: skip


def test_the_same_space_in_other_words_is_described_alike():
    assert space("a=1,2", "b=interval(0,1)").describe() == space("b=interval(0.0,1.0)", "a=choice(1,2)").describe()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=1"], "has nothing to search: give at least one key several values, such as peft.r=8,16,32"),
        (["a=interval(5,1)"], r"a=interval\(5.0,1.0\) holds nothing"),
        (["a=tag(log,interval(0,1))"], "must begin above 0"),
        (["a=tag(lgo,interval(1,2))"], "a: the tag lgo is not supported"),
        (["a=tag(log,choice(1,2))"], "a: the tag log is not supported"),
    ],
)
def test_what_cannot_be_searched_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        space(*words)


def test_a_grid_of_an_interval_is_refused():
    with pytest.raises(UserError, match="lr is an interval: give its values"):
        space("peft.r=4,8", "optim.lr=interval(0.1,0.2)").grid()
