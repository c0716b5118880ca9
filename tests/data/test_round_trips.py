"""Tables that pandas writes come back with the same texts and labels, in training and in prediction."""

import csv
import warnings

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentexp.data.tables import TextFormat, read_table
from sentexp.inference.readers import open_source

WANTED = {"data.text": "text", "data.label": "label"}
ODD = [
    '"',
    '""',
    "\n",
    "\r\n",
    "\r",
    ",",
    "\t",
    "\0",
    "'",
    "\\",
    "\u202b",
    "שלום",
    "👍🏽",
    "\u2028",
    "\x85",
    "\ufeff",
    "=",
    " ",
]
TEXT = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=5)), min_size=1, max_size=8).map("".join)
ROWS = st.lists(st.tuples(TEXT.filter(str.strip), st.one_of(st.integers(-9, 9), TEXT.filter(str.strip))), min_size=1)
# Python 3.11 leaves a carriage return without quotation marks unless all values have them: no reader can undo that.
WRITERS = {
    ".csv": lambda frame, file: frame.to_csv(file, index=False, quoting=csv.QUOTE_ALL),
    ".csv.gz": lambda frame, file: frame.to_csv(file, index=False, quoting=csv.QUOTE_ALL),
    ".csv.xz": lambda frame, file: frame.to_csv(file, index=False, quoting=csv.QUOTE_ALL),
    ".jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True),
    ".json": lambda frame, file: frame.to_json(file, orient="records"),
    ".parquet": lambda frame, file: frame.assign(label=frame["label"].astype(str)).to_parquet(file),
}


@pytest.mark.parametrize("ending", WRITERS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_what_pandas_writes_comes_back(tmp_path, ending, rows):
    file = tmp_path / f"x{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WRITERS[ending](pd.DataFrame(rows, columns=["text", "label"], dtype=object), file)
    texts, labels = [text for text, _ in rows], [str(label) for _, label in rows]
    table = read_table(file, WANTED, TextFormat()).columns
    assert table["text"].to_pylist() == texts
    assert table["label"].to_pylist() == labels
    with open_source(str(file), piece=3) as source:
        assert [text for chunk in source.chunks("text", 4) for text in chunk.texts] == texts


@pytest.mark.parametrize("ending", WRITERS)
def test_a_cell_of_a_million_characters_comes_back(tmp_path, ending):
    text = 'a "long" story,\n' * 65_000
    WRITERS[ending](
        pd.DataFrame([(text, "good"), ("short", "bad")], columns=["text", "label"]), tmp_path / f"x{ending}"
    )
    table = read_table(tmp_path / f"x{ending}", WANTED, TextFormat()).columns
    assert table["text"].to_pylist() == [text, "short"]
