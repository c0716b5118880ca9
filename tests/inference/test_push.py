"""The weights of a run go to a hub, a server that stands in for it, and the token is shown nowhere."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_a_secret_of_the_tests"


class Hub(ThreadingHTTPServer):
    """Takes what is uploaded, and refuses with a status where it has one.

    `asked` are paths of requests, `tokens` what was in their headers, `files` what was uploaded, by name.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.asked, self.tokens, self.files, self.made, self.status = [], set(), {}, [], 200


class Requests(BaseHTTPRequestHandler):
    """What of the hub's protocol an upload needs."""

    def do_GET(self):  # noqa: D102
        self.answer(b"")

    def do_POST(self):  # noqa: D102
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body):  # noqa: D102
        hub = self.server
        hub.asked.append(self.path)
        hub.tokens.add(self.headers.get("authorization"))
        reply = {}
        if self.path == "/api/repos/create":
            hub.made.append(json.loads(body))
            reply = {"url": f"http://127.0.0.1:{hub.server_port}/me/reviews", "name": "me/reviews"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            reply = {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            hub.files |= {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            reply = {"commitUrl": f"http://127.0.0.1:{hub.server_port}/me/reviews/commit/1", "commitOid": "1" * 40}
            reply |= {"success": True, "hookOutput": ""}
        elif "validate-yaml" in self.path:
            reply = {"errors": [], "warnings": []}
        else:
            reply = {"id": "me/reviews", "modelId": "me/reviews", "private": True, "sha": "0" * 40, "siblings": []}
        text = json.dumps(reply).encode()
        self.send_response(hub.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):  # noqa: D102
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a server, which huggingface_hub takes for the hub."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no" / "token"))
    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=f"http://127.0.0.1:{server.server_port}"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(command_line, finished):
    """Return the command for a finished run."""
    result = finished()
    return lambda *words: command_line("push", f"run={result.folder}", "tracking=none", *words)


def test_the_folder_of_weights_is_uploaded_privately_and_whole(push, hub, finished):
    code, output, errors = push("to=me/reviews")
    assert code == 0, errors
    folder = finished().weights
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {"README.md", "adapter_model.safetensors", "sentexp.json", "tokenizer.json"} <= set(hub.files)
    assert b"[More Information Needed]" not in hub.files["README.md"]
    (made,) = hub.made
    assert made["name"] == "reviews"
    assert made["organization"] == "me"
    assert made.get("private") is True or made.get("visibility") == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in output + errors
    assert output.splitlines()[-1].startswith("uploaded: http://127.0.0.1:")


def test_a_model_for_everyone_is_asked_for(push, hub):
    assert push("to=me/reviews", "private=false")[0] == 0
    assert hub.made[0].get("private") in (False, None)
    assert hub.made[0].get("visibility") in ("public", None)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "to=me/reviews: the hub does not know who is asking: log in with `hf auth login`, or put a token"),
        (403, "to=me/reviews: the hub does not let you write there: name a model of your own"),
        (500, "to=me/reviews: the hub refuses the upload (status 500): try again later."),
    ],
)
def test_a_refusal_is_one_sentence_without_the_token(push, hub, status, said):
    hub.status = status
    code, output, errors = push("to=me/reviews")
    assert code == 1
    assert errors.startswith(f"sentexp: {said}")
    assert errors.count("\n") == 1
    assert TOKEN not in output + errors
    assert hub.files == {}


def test_a_token_that_no_header_takes_is_one_sentence_without_it(push, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN} é")
    code, output, errors = push("to=me/reviews")
    assert code == 1
    assert errors.startswith("sentexp: to=me/reviews: the token holds characters that no token has: log in with")
    assert errors.count("\n") == 1
    assert TOKEN not in output + errors


def test_without_a_hub_or_a_login_it_says_so(push, hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    code, _, errors = push("to=me/reviews")
    assert code == 1
    assert "to=me/reviews: the hub cannot be reached from here (" in errors
    monkeypatch.delenv("HF_TOKEN")
    code, _, errors = push("to=me/reviews")
    assert code == 1
    assert errors.startswith("sentexp: to=me/reviews: ")


@pytest.mark.parametrize("words", [[], ["to=reviews"], ["to=a/b/c"], ["to='me/a b'"], ["to=/b"]])
def test_a_name_that_is_none_is_refused_before_torch(push, words):
    code, _, errors = push(*words)
    assert code == 1
    assert "must be the name of a model on the hub, as to=<owner>/<name>, such as to=me/reviews." in errors


@pytest.mark.parametrize("is_named", [True, False])
def test_a_base_that_the_hub_does_not_have_is_mentioned(command_line, finished, base_model, hub, is_named):
    result = finished(*([f"model.path={base_model}"] if is_named else []))
    code, output, errors = command_line("push", f"run={result.folder}", "tracking=none", "to=me/reviews")
    assert code == 0, errors
    base = "base" if is_named else "tiny"
    assert f"Its base model is {base}, which is not on the hub: others need it as well" in output
