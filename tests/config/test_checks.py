"""One sentence for every range, with the key as it is typed."""

from dataclasses import dataclass

import pytest

from sentexp.config import load_config
from sentexp.config.checks import (
    check_accelerator,
    check_encoding,
    check_measure,
    check_ranges,
    given,
    number,
    read_delimiter,
    read_names,
    seed_number,
)
from sentexp.errors import UserError


@dataclass(kw_only=True)
class Oven:
    """Something with ranges."""

    heat: float = number(20.0, gt=0, lt=300)
    trays: int = number(1, ge=1, le=4)
    minutes: float | None = number(None, ge=0, note="null: until it is brown")
    name: str = "oven"
    seed: int = seed_number()

    def __post_init__(self):
        check_ranges(self, "oven")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"heat": 0}, "oven.heat=0 must be above 0 and below 300."),
        ({"heat": float("nan")}, "oven.heat=nan must be a finite number above 0 and below 300."),
        ({"trays": 5}, "oven.trays=5 must be at least 1 and at most 4."),
        ({"minutes": -1}, "oven.minutes=-1 must be at least 0 (null: until it is brown)."),
        ({"seed": 2**32}, "oven.seed=4294967296 must be at least 0 and at most 4294967295."),
    ],
)
def test_a_number_outside_its_range_is_refused(values, sentence):
    with pytest.raises(UserError) as refused:
        Oven(**{"seed": 0} | values)
    assert str(refused.value) == sentence


def test_a_number_inside_its_range_passes_and_so_does_none():
    assert Oven(heat=299.9, trays=4, minutes=None, seed=2**32 - 1).minutes is None


def test_a_number_without_a_value_must_be_given():
    with pytest.raises(TypeError, match="seed"):
        Oven()


def test_keys_without_a_group_are_told_bare():
    with pytest.raises(UserError, match=r"^confidence=95 must be above 0 and below 1"):
        check_measure("accuracy", 95)
    with pytest.raises(UserError, match=r"^resamples=99 must be at least 100"):
        check_measure("accuracy", 0.95, 99)
    with pytest.raises(UserError, match=r"^metric=speed must be one of loss, accuracy"):
        check_measure("speed")


def test_what_several_configurations_have_is_checked_alike():
    with pytest.raises(UserError, match=r"encoding=klingon is not an encoding that Python knows.*usual, or null"):
        check_encoding("encoding", "klingon", ", or null")
    with pytest.raises(UserError, match="accelerator=tpu must be auto, cpu or gpu"):
        check_accelerator("accelerator", "tpu")
    with pytest.raises(UserError, match="delimiter=';;' must be one character such as"):
        read_delimiter("delimiter", ";;")
    assert [read_delimiter("delimiter", text) for text in ("\\t", ";", None)] == ["\t", ";", None]
    check_encoding("encoding", None)
    assert read_names("slices", "region", "a column") == ["region"]
    assert read_names("slices", ["a", "b", "a"], "a column") == ["a", "b"]


def test_what_must_be_given_is_returned():
    assert given(0, "give a number") == 0
    with pytest.raises(UserError, match="give a number"):
        given(None, "give a number")


@pytest.mark.parametrize("value", ["maybe", 1, 0, "null"])
@pytest.mark.parametrize("key", ["trainer.cuda_graphs", "model.keep_dequantized"])
def test_a_switch_is_on_off_or_auto(key, value):
    given_as = None if value == "null" else value
    with pytest.raises(UserError, match=rf"^{key}={given_as} must be auto, true or false.$"):
        load_config(f"{key}={value}")
