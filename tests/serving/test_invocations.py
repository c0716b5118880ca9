"""What cannot be read is answered with a clear 4xx, and what is too large is not read."""

import asyncio
import json

import pytest
from starlette.requests import Request

from sentexp.serving.invocations import CSV, JSON, Refused, read_body, read_request, refusal


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b"", JSON, 400, "The request is empty"),
        (b"  \n", JSON, 400, "The request is empty"),
        (b"{", JSON, 400, "The request is not JSON"),
        (b"\xff\xfe\x00", JSON, 400, "The request is not JSON"),
        (b"[" * 100_000, JSON, 400, "The request is not JSON"),
        (b"[]", JSON, 400, "must be an object with one of dataframe_records, dataframe_split, instances, inputs"),
        (b'"text"', JSON, 400, "must be an object"),
        (b"{}", JSON, 400, "must be an object"),
        (b'{"inputs": [], "instances": []}', JSON, 400, "must be an object with one of"),
        (b'{"inputs": ["x"], "params": 3}', JSON, 400, "params must be an object"),
        (b'{"inputs": {"text": 5}}', JSON, 400, "inputs has 5 where a text should be"),
        (b'{"inputs": "x"}', JSON, 400, 'inputs has "x" where an object should be'),
        (b'{"inputs": {"text": ["x", null]}}', JSON, 400, "inputs has null where a text should be"),
        (b'{"instances": [{"text": "x"}, {"text": []}]}', JSON, 400, r"instances has \[\] where a text should be"),
        (b'{"instances": [{"text": "x"}, {"words": "y"}]}', JSON, 400, "instances lacks text"),
        (b'{"inputs": {"text": %s1%s}}' % (b"[" * 900, b"]" * 900), JSON, 400, "recursion limit"),
        (b'{"dataframe_split": null}', JSON, 400, "dataframe_split has null where an object should be"),
        (b'{"dataframe_split": {"columns": ["a"], "data": [["x"]]}}', JSON, 400, "must have one column text"),
        (b'{"dataframe_split": {"columns": ["text"], "data": [["x", 1]]}}', JSON, 400, "a value for each column"),
        (b'{"inputs": ["x"], "params": {"warm": 1}}', JSON, 400, "params has warm=1: it must be calibrated, true or"),
        (b'{"inputs": ["x"], "params": {"calibrated": 1}}', JSON, 400, "params has calibrated=1: it must be calibra"),
        (b"words\nx", CSV, 400, "must have one column text; its columns are words"),
        (b'text\n"x', CSV, 400, "cannot be read as CSV"),
        (b"\xff\xfe\x00bytes", CSV, 400, "cannot be read as CSV"),
        (b"PAR1xx", "application/vnd.apache.parquet", 400, "cannot be read as Parquet"),
        (b"{}", "", 415, "Content-Type is missing: it must be application/json, text/csv or"),
        (b"{}", "text/plain", 415, "Content-Type is text/plain"),
        (b"text\nx", "text/csv; charset=latin-1", 415, "in UTF-8"),
    ],
)
def test_what_is_unreadable_is_refused(body, kind, status, sentence):
    with pytest.raises(Refused, match=sentence) as refused:
        read_request(body, kind)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "given",
    [
        {"dataframe_records": [{"text": "x", "n": 1}, {"text": "y"}]},
        {"dataframe_split": {"columns": ["n", "text"], "data": [[1, "x"], [2, "y"]], "index": [3, 4]}},
        {"instances": ["x", "y"]},
        {"instances": [{"text": "x"}, {"text": "y"}]},
        {"inputs": {"text": ["x", "y"], "n": [1, 2]}},
        {"inputs": ["x", "y"], "params": None},
    ],
)
@pytest.mark.parametrize("kind", [JSON, "Application/JSON; charset=UTF-8"])
def test_every_form_gives_its_texts(given, kind):
    table, params = read_request(json.dumps(given).encode(), kind)
    assert table["text"].tolist() == ["x", "y"]
    assert params == {}


def test_a_single_text_parameters_and_csv_are_read():
    table, params = read_request(b'{"inputs": {"text": "x"}, "params": {"calibrated": true}}', JSON)
    assert (table["text"].tolist(), params) == (["x"], {"calibrated": True})
    assert read_request(b"n,text\n1,5\n", CSV)[0]["text"].tolist() == ["5"]
    assert read_request(b"text\r\nNA\r\nnull\r\n", CSV)[0]["text"].tolist() == ["NA", "null"]


def test_one_text_has_one_second_text():
    with pytest.raises(Refused, match="as many values of text_pair as of text"):
        read_request(b'{"inputs": {"text": "x", "text_pair": []}}', JSON, pairs=True)


def body_of(parts, headers=(), most=100):
    """Return the body of a request that is sent in parts, which are taken from the list as they are heard."""

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    return asyncio.run(read_body(Request({"type": "http", "headers": headers}, receive), most))


def test_a_request_in_parts_is_read_whole():
    assert body_of([b'{"inp', b'uts": ["x"]}']) == b'{"inputs": ["x"]}'


@pytest.mark.parametrize(
    ("parts", "headers", "dropped"),
    [
        (3, [], 3),  # its sender is heard to the end, and gets the answer
        (3, [(b"content-length", b"180")], 3),
        (1000, [], 107),  # 64 times the limit, and no more
        (1000, [(b"content-length", b"60000")], 0),
    ],
)
def test_a_request_that_is_too_large_is_refused(parts, headers, dropped):
    left = [b"x" * 60] * parts
    with pytest.raises(Refused, match="larger than 100 bytes: send its texts in several") as refused:
        body_of(left, headers)
    assert parts - len(left) == dropped
    answer = refusal(refused.value)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


def test_a_sender_who_has_gone_is_not_waited_for():
    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(Refused, match="client disconnected"):
        asyncio.run(read_body(Request({"type": "http", "headers": []}, receive), 100))


def test_an_error_is_written_as_mlflow_writes_it():
    answer = refusal(Refused(400, "There are 4 texts."))
    assert json.loads(answer.body) == {"error_code": "BAD_REQUEST", "message": "There are 4 texts."}
