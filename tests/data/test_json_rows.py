"""JSON Lines and arrays of objects: the same rows in blocks, each fault with its line or row."""

import json

import pytest

from sentexp.data.delimited import Keys
from sentexp.data.json_rows import JsonRows
from sentexp.errors import UserError

ROWS = [{"text": "a", "n": [1, 2.0]}, {"text": "é", "more": None}, {"text": "\u2028 line"}]


@pytest.fixture
def opened(tmp_path):
    """Return a function that writes a file and opens it."""

    def write(content):
        file = tmp_path / "x.json"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return JsonRows(file, None, Keys(), "the input")

    return write


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS), 3),
        (" \n" + json.dumps(ROWS, indent=1), None),
    ],
)
def test_lines_and_arrays_give_the_same_rows(opened, content, count):
    file = opened(content)
    assert file.count() == count
    assert list(file.blocks(2)) == [ROWS[:2], ROWS[2:]]
    assert list(file.columns) == ["text", "n", "more"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"a": 1}\n\n{"a"\n', "Line 3 of the input is not JSON"),
        ('[{"a": 1},\n {"a"}]', "Line 2 of the input is not JSON"),
        ('{"a": 1}\n\n3\n', "Row 2 of the input is not a JSON object"),
        ("[" * 100_000, "the input is nested too deep to be read as JSON"),
        ('{"a": 1}\n' + '{"a":' * 100_000, "Line 2 of the input is nested too deep to be read as JSON"),
        ('[{"a": 1}, [2]]', "Row 2 of the input is not a JSON object"),
        ('{"a": 1}\n{"a": ["\\ud800"]}\n', "Row 2 of the input holds half of a surrogate pair"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', "Line 2 of the input is not utf-8: name its encoding with data.encoding=<name>"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(opened, content, sentence):
    with pytest.raises(UserError, match=sentence):
        list(opened(content).blocks(10))
