"""Rows in the forms that are written."""

from sentexp.inference.row_formats import as_arrow


def test_json_becomes_columns_of_texts_whatever_its_values():
    found = as_arrow([{"a": 1, "b": "x"}, {"a": [1.5, None]}], ["a", "b"])
    assert found.to_pylist() == [{"a": "1", "b": "x"}, {"a": "[1.5, null]", "b": None}]
