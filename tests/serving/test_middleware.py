"""What the scoring server could not read is answered with a clear 4xx, and the rest passed on as it came."""

import asyncio
import json

import pytest

from sentexp.serving.middleware import Guard, Refused, check, sentence_of

JSON = "application/json"


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b"", JSON, 400, "The request is empty"),
        (b"  \n", JSON, 400, "The request is empty"),
        (b"{", JSON, 400, "The request is no JSON"),
        (b"\xff\xfe\x00", JSON, 400, "The request is no JSON"),
        (b"[" * 100_000, JSON, 400, "The request is no JSON"),
        (b"[]", JSON, 400, "must be an object with one of dataframe_records, dataframe_split, instances, inputs"),
        (b'"text"', JSON, 400, "must be an object"),
        (b"{}", JSON, 400, "must be an object"),
        (b'{"inputs": [], "instances": []}', JSON, 400, "must be an object with one of"),
        (b'{"inputs": ["x"], "params": 3}', JSON, 400, "params must be an object"),
        (b'{"inputs": {"text": 5}}', JSON, 400, "inputs has 5 where a text should be"),
        (b'{"inputs": {"text": ["x", {"a": [null]}]}}', JSON, 400, "inputs has null where a text should be"),
        (b'{"instances": [{"text": "x"}, {"text": []}]}', JSON, 400, r"instances has \[\] where a text should be"),
        (b'{"inputs": {"text": %s1%s}}' % (b"[" * 900, b"]" * 900), JSON, 400, "inputs has 1 where a text should be"),
        (
            b'{"inputs": ["x"], "params": {"warm": 1}}',
            JSON,
            400,
            "params has warm: it must be calibrated, true or false",
        ),
        (b"{}", "", 415, "Content-Type is missing: it must be application/json, text/csv or"),
        (b"{}", "text/plain", 415, "Content-Type is text/plain"),
    ],
)
def test_what_is_unreadable_is_refused(body, kind, status, sentence):
    with pytest.raises(Refused, match=sentence) as refused:
        check(body, kind)
    assert refused.value.status == status


@pytest.mark.parametrize("kind", [JSON, "Application/JSON; charset=utf-8"])
def test_what_is_readable_is_not(kind):
    check(b'{"dataframe_records": [{"text": "x"}], "params": {"calibrated": true}}', kind)
    check(b"text\nx", "text/csv")


def talk(guard, parts, headers=(), path="/invocations"):
    """Send a request in parts; return the messages that come back."""
    scope = {"type": "http", "path": path, "method": "POST", "headers": [(b"content-type", JSON.encode()), *headers]}
    sent = []

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def echo(seen):
    async def app(scope, receive, send):
        seen.append((await receive())["body"])

    return app


def test_a_request_in_parts_is_passed_on_whole():
    seen, body = [], b'{"inputs": ["x"]}'
    assert talk(Guard(echo(seen), 100), [body[:5], body[5:]]) == []
    assert seen == [body]


@pytest.mark.parametrize(
    ("parts", "headers", "dropped"),
    [
        (3, [], 3),  # its sender is heard to the end, and gets the answer
        (3, [(b"content-length", b"180")], 3),
        (1000, [], 107),  # 64 times the limit, and no more
        (1000, [(b"content-length", b"60000")], 0),
    ],
)
def test_a_request_that_is_too_large_is_not_passed_on(parts, headers, dropped):
    seen, left = [], [b"x" * 60] * parts
    start, body = talk(Guard(echo(seen), 100), left, headers)
    assert start["status"] == 413
    assert json.loads(body["body"])["message"] == "The request is larger than 100 bytes: send its texts in several."
    assert (seen, parts - len(left)) == ([], dropped)


def test_other_paths_are_the_servers():
    seen = []
    talk(Guard(echo(seen), 1), [b"anything"], path="/elsewhere")
    assert seen == [b"anything"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            {
                "message": "Failed to predict data '  text\n0    a'. \nError: There are 4 texts.",
                "stack_trace": "/a/b.py",
            },
            "There are 4 texts.",
        ),
        (
            {"message": "Failed to parse input. Error: 'EOF'", "stack_trace": "/a/b.py"},
            "Failed to parse input. Error: 'EOF'",
        ),
        ({"detail": "Not Found"}, "Not Found"),
        ([], "The request cannot be answered"),
    ],
)
def test_an_error_of_the_server_is_its_reason_alone(body, sentence):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 400, "headers": [(b"x", b"/a/b.py")]})
        whole = json.dumps(body).encode()
        await send({"type": "http.response.body", "body": whole[:5], "more_body": True})
        await send({"type": "http.response.body", "body": whole[5:]})

    start, answer = talk(Guard(app, 100), [b'{"inputs": ["x"]}'])
    assert start["status"] == 400
    assert json.loads(answer["body"])["message"].startswith(sentence)
    assert "/a/b.py" not in f"{start}{answer}"
    assert sentence_of(b"no json").startswith("The request cannot be answered")
