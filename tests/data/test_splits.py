"""Splits and subsets: disjoint, exhaustive, stable, stratified, nested; duplicates and groups stay together."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentexp.config import load_config
from sentexp.data.splits import NAMES, carve, load_examples, subset
from sentexp.data.text_hash import hash64, normalise, text_keys
from sentexp.errors import UserError

FRACTIONS = {"validation": 0.1, "test": 0.2}
ROWS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3)), min_size=1, max_size=300)
DISTINCT = st.lists(st.integers(0, 10**6), min_size=1, max_size=300, unique=True).flatmap(
    lambda numbers: st.tuples(
        st.just(numbers), st.lists(st.integers(0, 3), min_size=len(numbers), max_size=len(numbers))
    )
)


def table(texts, labels, **columns):
    rows = {"text": pa.array(texts, pa.large_string()), "label": pa.array(labels, pa.int32())}
    return pa.table(rows | {name.replace("slice_", "slice."): pa.array(values) for name, values in columns.items()})


def rows_of(part):
    return Counter(zip(part.column("text").to_pylist(), part.column("label").to_pylist(), strict=True))


def class_counts(part):
    return Counter(part.column("label").to_pylist())


@given(ROWS, st.integers(0, 3))
def test_carving_is_disjoint_exhaustive_and_keeps_equal_texts_together(rows, seed):
    texts = [f"Text  {number % 40}" if number % 2 else f"text {number % 40}" for number, _ in rows]
    whole = table(texts, [label for _, label in rows])
    parts = carve(whole, FRACTIONS, seed)
    assert sum((rows_of(part) for part in parts.values()), Counter()) == rows_of(whole)
    keys = [set(map(normalise, part.column("text").to_pylist())) for part in parts.values()]
    assert sum(map(len, keys)) == len(set.union(*keys))


@given(DISTINCT)
def test_carving_is_stratified_within_one_row_of_each_class(rows):
    numbers, labels = rows
    whole = table([f"text {number}" for number in numbers], labels)
    parts = carve(whole, FRACTIONS)
    for label, total in Counter(labels).items():
        for name, fraction in FRACTIONS.items():
            assert abs(class_counts(parts[name])[label] - fraction * total) <= 1


@given(ROWS, st.randoms(use_true_random=False))
def test_carving_and_subsets_do_not_depend_on_the_order_of_the_rows(rows, random):
    shuffled = random.sample(rows, len(rows))

    def build(given):
        return table(
            [f"text {number}" for number, _ in given],
            [label for _, label in given],
            slice_x=[str(number % 3) for number, _ in given],
            group=[str(number % 50) for number, _ in given],
        )

    first, second = build(rows), build(shuffled)
    for name, part in carve(first, FRACTIONS).items():
        assert rows_of(part) == rows_of(carve(second, FRACTIONS)[name])
    half = max(1, len(rows) // 2)
    assert rows_of(first.take(subset(first, half, 0, "k"))) == rows_of(second.take(subset(second, half, 0, "k")))


@given(DISTINCT, st.data())
def test_subsets_are_nested_exact_and_stratified_within_one_row(rows, data):
    numbers, labels = rows
    whole = table([f"text {number}" for number in numbers], labels, slice_x=[str(n % 2) for n in numbers])
    large = data.draw(st.integers(1, len(numbers)))
    small = data.draw(st.integers(1, large))
    inner, outer = subset(whole, small, 5, "k"), subset(whole, large, 5, "k")
    assert set(inner) <= set(outer)
    assert len(outer) == large
    assert list(outer) == sorted(outer)
    totals, taken = Counter(labels), Counter(labels[row] for row in outer)
    for label, total in totals.items():
        assert abs(taken[label] - large * total / len(labels)) <= 1


@given(ROWS)
@settings(max_examples=50)
def test_groups_and_equal_texts_never_straddle_a_split(rows):
    # A chain: text 3 ties group 3 to group 4, and so on; rows without a group are tied by their text alone.
    texts = [f"text {number % 30}" for number, _ in rows]
    groups = [None if number % 7 == 0 else str(number % 11) for number, _ in rows]
    parts = carve(table(texts, [label for _, label in rows], group=groups), FRACTIONS)
    for column in ("text", "group"):
        held = [set(part.column(column).to_pylist()) - {None} for part in parts.values()]
        assert sum(map(len, held)) == len(set.union(*held))


def test_groups_share_out_the_rows_as_well_as_they_can():
    groups = [str(index // 5) for index in range(1000)]
    parts = carve(table([f"text {i}" for i in range(1000)], [i // 5 % 2 for i in range(1000)], group=groups), FRACTIONS)
    assert abs(parts["test"].num_rows - 200) <= 10
    assert abs(class_counts(parts["test"])[0] - 100) <= 5


def test_a_subset_takes_groups_one_after_the_other():
    rows = table([f"text {i}" for i in range(100)], [0] * 100, group=[str(i % 10) for i in range(100)])
    taken = Counter(rows.column("group").to_pylist()[row] for row in subset(rows, 35, 0, "k"))
    assert sorted(taken.values()) == [5, 10, 10, 10]


def test_slices_have_their_share_of_every_part():
    labels, slices = [i % 2 for i in range(400)], ["a" if i % 4 < 3 else "b" for i in range(400)]
    rows = table([f"text {i}" for i in range(400)], labels, slice_x=slices)
    parts = [carve(rows, FRACTIONS)["test"], *(rows.take(subset(rows, size, 0, "k")) for size in range(4, 400, 12))]
    for part in parts:
        assert abs(Counter(part.column("slice.x").to_pylist())["b"] - part.num_rows / 4) <= 1


def test_rows_without_a_group_are_divided_one_by_one():
    parts = carve(
        table([f"text {i}" for i in range(100)], [0] * 100, group=pa.array([None] * 100, pa.string())), FRACTIONS
    )
    assert parts["test"].num_rows == 20


def test_another_seed_is_another_split_and_another_subset():
    rows = table([f"text {i}" for i in range(200)], [i % 2 for i in range(200)])
    assert rows_of(carve(rows, FRACTIONS)["test"]) != rows_of(carve(rows, FRACTIONS, 1)["test"])
    assert set(subset(rows, 50, 0, "k")) != set(subset(rows, 50, 1, "k"))
    assert set(subset(rows, 50, 0, "k")) == set(subset(rows, 0.25, 0, "k"))


def test_the_split_is_the_same_on_every_machine():
    # Values written down once: a change of hash, salt, normalisation or order would move published test rows.
    assert hash64(normalise("A  warm and FUNNY film"), "split") == 16418881507984480318
    parts = carve(table([f"text {i}" for i in range(20)], [i % 2 for i in range(20)]), FRACTIONS)
    assert parts["test"].column("text").to_pylist() == ["text 0", "text 5", "text 9", "text 14"]


def test_normalise_folds_case_width_and_space():
    assert normalise(" Ｆｕｌｌ  width\tSTRASSE ") == normalise("full WIDTH straße")
    assert len(np.unique(text_keys(table(["A b", "a  B", "a c"], [0, 0, 0])))) == 2


@pytest.mark.parametrize("size", [9, 0.01])
def test_a_subset_of_too_many_or_no_rows_is_refused(size):
    with pytest.raises(UserError, match=rf"data.train_subset={size} asks for . of 3 rows"):
        subset(table(["a", "b", "c"], [0, 1, 0]), size, 0, "data.train_subset")


def test_the_embedded_data_are_carved_once_and_for_all():
    examples = load_examples(load_config().data, whole=True)
    assert {name: examples.split(name).num_rows for name in NAMES} == {"train": 6824, "validation": 852, "test": 854}
    assert examples.counts()["test"] == {"negative": 427, "positive": 427}
    assert not set(examples.keys("train")) & set(examples.keys("test"))
    small = load_examples(load_config().data)
    assert (small.train.num_rows, small.validation.num_rows) == (2000, 200)
    assert small.available == {"train": 6824, "validation": 852, "test": 854}
    assert set(small.keys("train")) <= set(examples.keys("train"))


def test_the_public_validation_split_of_sst2_is_the_test_split(corpora):
    examples = load_examples(load_config("data=sst2", f"data.path={corpora / 'sst2'}").data)
    assert examples.counts()["test"] == {"negative": 20, "positive": 24}
    assert examples.train.num_rows + examples.validation.num_rows == 651


def test_the_phrase_bank_is_split_alike_at_every_level(corpora):
    words = ["data=fpb", f"data.path={corpora / 'fpb'}"]
    held: dict[str, dict[str, Counter[object]]] = {}
    for level, total in {"50": 174, "66": 147, "75": 122, "all": 98}.items():
        examples = load_examples(load_config(*words, f"data.agreement={level}").data)
        assert sum(examples.available.values()) == total
        held[level] = {name: rows_of(examples.split(name)) for name in NAMES}
        keys = [set(examples.keys(name)) for name in NAMES]
        assert sum(map(len, keys)) == len(set.union(*keys))
        assert abs(examples.test.num_rows - total / 10) <= 4
    whole = load_examples(load_config(*words).data)
    assert whole.available == {"train": 139, "validation": 17, "test": 18}
    assert whole.digest() == "4bff821fac53855a555fb46c00b2b4511983d6d609770b67d9ec08eb480a53d4"
    for name in NAMES:  # a sentence is in the same split at every level, so that levels can be compared
        assert held["all"][name] <= held["75"][name] <= held["66"][name] <= held["50"][name]
    assert set(examples.slices("test")["agreement"]) == {"all"}


def test_a_subset_of_two_languages_is_stratified_in_both(corpora):
    words = ["data=multilingual", f"data.path={corpora / 'multilingual'}", "data.languages=[english,spanish]"]
    examples = load_examples(load_config(*words, "data.train_subset=0.2").data)
    assert examples.train.num_rows == round(0.2 * 2 * 27)
    counts = Counter(zip(examples.train.column("slice.language").to_pylist(), examples.targets("train"), strict=True))
    assert len(counts) == 6
    assert all(abs(count - 0.2 * 9) <= 1 for count in counts.values())


def one_file(tmp_path, rows, *overrides):
    (tmp_path / "x.csv").write_text(
        "text,label,who\n" + "".join(f"{text},{label},{who}\n" for text, label, who in rows)
    )
    return load_config("data=csv", f"data.path={tmp_path / 'x.csv'}", *overrides).data


def test_one_class_in_train_is_refused(tmp_path):
    rows = [(f"text {i}", 1, i) for i in range(100)] + [("one other", 0, 0)]
    with pytest.raises(UserError, match="one class in its train split, 1"):
        load_examples(one_file(tmp_path, rows, "data.train_subset=1"))


def test_a_split_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no rows in the validation split: .*data.validation_fraction"):
        load_examples(one_file(tmp_path, [("a", 1, 1), ("b", 0, 2), ("c", 1, 3)]))


def test_a_column_with_too_many_values_is_no_slice(tmp_path):
    rows = [(f"text {i}", i % 2, i) for i in range(3000)]
    with pytest.raises(UserError, match=r"data.slices: the column who .* 300 different values .* at most 100"):
        load_examples(one_file(tmp_path, rows, "data.slices=[who]"))


def write_splits(folder, splits):
    for name, texts in splits.items():
        rows = "".join(f"{text},{index % 2}\n" for index, text in enumerate(texts))
        (folder / f"{name}.csv").write_text("sentence,label\n" + rows)


def test_deduplication_removes_from_train_only_what_is_evaluated(tmp_path):
    write_splits(
        tmp_path,
        {
            "train": ["A film", "b", "b", "c", "d", "e"],
            "validation": ["D", "f", "f"],
            "test": ["a  FILM", "g", "f"],
        },
    )
    words = ["data=sst2", f"data.path={tmp_path}", "data.splits.validation=validation", "data.splits.test=test"]
    kept = load_examples(load_config(*words).data)
    assert (kept.train.num_rows, kept.removed) == (6, 0)
    cleaned = load_examples(load_config(*words, "data.deduplicate=true").data)
    assert cleaned.train.column("text").to_pylist() == ["b", "b", "c", "e"]
    assert cleaned.removed == 2
    assert cleaned.available["train"] == 6
    assert (cleaned.validation.num_rows, cleaned.test.num_rows) == (3, 3)
    assert cleaned.digest() != kept.digest()
