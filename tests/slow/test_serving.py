"""The server in a process of its own: clients at once, some of them slow, malformed requests, a page, a stop.

`make soak` sends 10,000 malformed requests and has 100 slow clients, `make slow` a tenth.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from soak import SEED, share_of

from sentexp.config import load_config
from sentexp.inference.scorer import Scorer
from sentexp.models.saved import read_trained
from sentexp.run.train import train

pytestmark = pytest.mark.slow

CLIENTS, SECONDS = 16, int(os.environ.get("SECONDS", "15"))
SLOW_CLIENTS, MALFORMED = share_of(100), share_of(10_000)
HALVES = [
    b"",
    b"POST /invocations HT",
    b"POST /invocations HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{",
    b'POST /invocations HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{"da\r\n',
]
"""What a slow client sends before it stops."""
WORDS = (
    "good",
    "bad",
    "warm",
    "cold",
    "film",
    "plot",
    "cast",
    "music",
    "never",
    "always",
    "dull",
    "bright",
    "a",
    "the",
)


@pytest.fixture
def trained(reviews, tmp_path):
    """Return a finished run in an MLflow store of its own."""
    words = ["model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation"]
    words += ["data.splits.test=test", "trainer.batch_size=8", "trainer.progress_bar=false", "optim.lr=1e-2"]
    words += ["trainer.precision=fp32", "baseline=false", "tracking.system_metrics=false"]
    words += [f"output_dir={tmp_path / 'outputs'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    return train(load_config(*words))


@pytest.fixture
def address(trained, serve, free_port, tmp_path):
    """Return where the run is served, by a warm process."""
    port = free_port()
    words = ["-m", "sentexp", "serve", f"run={trained.identity}", f"port={port}"]
    serve(words, tmp_path, f"127.0.0.1:{port}", fork=True)
    return f"http://127.0.0.1:{port}"


def post(address, body, kind="application/json"):
    """Send a request; return the status and what came back."""
    headers = {} if kind is None else {"Content-Type": kind}
    request = urllib.request.Request(f"{address}/invocations", body, headers)
    if kind is None:
        request.add_unredirected_header("Content-Type", "")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask(address, texts):
    status, body = post(address, json.dumps({"dataframe_records": [{"text": text} for text in texts]}).encode())
    assert status == 200, body
    return json.loads(body)["predictions"]


def probabilities(said):
    return np.array([[row["probability_negative"], row["probability_positive"]] for row in said])


def some_texts(chance, count):
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 30))) for _ in range(count)]


def test_sixteen_clients_get_each_their_own_answers(address, trained, soaked):
    scorer = Scorer(read_trained(trained.weights))
    texts = some_texts(random.Random(0), 400)
    wanted = scorer.probabilities(texts)
    until, seconds, refused, faults = time.monotonic() + SECONDS, [], [], []

    def client(number):
        chance = random.Random(number)
        while time.monotonic() < until and not faults:
            chosen = chance.choices(range(len(texts)), k=chance.randint(1, 8))
            began = time.monotonic()
            try:
                said = probabilities(ask(address, [texts[place] for place in chosen]))
                np.testing.assert_allclose(said, wanted[chosen], atol=1e-4)
            except Exception as error:
                faults.append(f"client {number}: {error!r}")
            seconds.append(time.monotonic() - began)

    def send_malformed():
        chance = random.Random(SEED)
        while time.monotonic() < until and not faults:
            status, said = post(address, *malformed(chance))
            if not 400 <= status < 500:
                faults.append(f"malformed: {status}, {said[:500]!r}")
            refused.append(status)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    threads.append(threading.Thread(target=send_malformed))
    with ExitStack() as slow:
        halves = [slow.enter_context(_slow_client(address, number)) for number in range(SLOW_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults, faults[0]
        for connection in halves:  # after max_seconds, which are 30
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert len(seconds) > CLIENTS
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1000
    beside = f"{CLIENTS} clients, {len(refused):,} malformed requests and {SLOW_CLIENTS} slow clients beside"
    took = f"half within {p50:.0f} ms, 95 % within {p95:.0f} ms, 99 % within {p99:.0f} ms"
    soaked(len(seconds), f"requests of 1 to 8 texts by {beside}", f"no wrong answer, no 5xx; {took}")


def _slow_client(address, number):
    """Return a connection on which half of a request has been sent."""
    connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=120)
    connection.sendall(HALVES[number % len(HALVES)])
    return connection


def malformed(chance):
    """Return a request that no server can answer: a body and its type."""
    whole = json.dumps({"dataframe_records": [{"text": text} for text in some_texts(chance, 2)]}).encode()
    kinds = [
        (whole[: chance.randint(1, len(whole) - 1)], "application/json"),
        (chance.randbytes(chance.randint(1, 200)), "application/json"),
        (whole, chance.choice(["text/plain", "application/xml", None])),
        (b"", "application/json"),
        (json.dumps({"dataframe_records": []}).encode(), "application/json"),
        (json.dumps({"dataframe_records": [{"txt": "x"}]}).encode(), "application/json"),
        (
            json.dumps({"dataframe_records": [{"text": chance.choice([None, 3, [], {}, ""])}]}).encode(),
            "application/json",
        ),
        (json.dumps({"dataframe_split": {"columns": ["text"]}}).encode(), "application/json"),
        (json.dumps({"dataframe_split": chance.choice([1, "x", [1], None])}).encode(), "application/json"),
        (
            json.dumps({"instances": chance.choice([1, "x", {"a": 1}, [[1, 2], [3]], None])}).encode(),
            "application/json",
        ),
        (json.dumps({"inputs": {"text": chance.choice([5, {"a": {}}, [[]], None])}}).encode(), "application/json"),
        (
            json.dumps({"dataframe_records": [{"text": "x"}], "params": {"calibrated": "no"}}).encode(),
            "application/json",
        ),
        (b"\xff\xfe\x00bytes", "text/csv"),
        (b"other\nx", "text/csv"),
        (b"PAR1" + chance.randbytes(50), "application/vnd.apache.parquet"),
        (json.dumps({"dataframe_records": [{"text": "x"}] * 2000}).encode(), "application/json"),
        (b"[" * 50_000, "application/json"),
        (b'{"dataframe_records": "' + b"x" * (1 << 20) + b'"}', "application/json"),
    ]
    return chance.choice(kinds)


def test_malformed_requests_leave_it_serving_in_the_same_memory(address, trained, soaked):
    texts = ["a warm film", "dull"]
    chance, statuses, memory = random.Random(SEED + 1), Counter(), []
    for number in range(MALFORMED):
        body, kind = malformed(chance)
        status, said = post(address, body, kind)
        assert 400 <= status < 500, (status, body[:200], kind, said[:500])
        assert json.loads(said)["message"], said
        statuses[status] += 1
        if number in (MALFORMED // 2, MALFORMED - 1):
            memory.append(_memory_of(address))
    assert {400, 413, 415} <= set(statuses)
    assert memory[1] < memory[0] + 100 * 2**20
    wanted = Scorer(read_trained(trained.weights)).probabilities(texts)
    np.testing.assert_allclose(probabilities(ask(address, texts)), wanted, atol=1e-4)
    assert urllib.request.urlopen(f"{address}/health").status == 200
    soaked(MALFORMED, "malformed requests", f"no 5xx; {(memory[1] - memory[0]) / 2**20:+.0f} MiB in the second half")


def _memory_of(address):
    """Return the resident bytes of the process that listens at an address."""
    import psutil

    port = int(address.rpartition(":")[2])
    (process,) = {one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port}
    return psutil.Process(process).memory_info().rss


def test_a_person_asks_the_page(address, trained, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(address)
    sentence = 'a warm "film" <b>& more</b>'
    browser.find_element(By.ID, "text").send_keys(sentence)
    browser.find_element(By.ID, "ask").click()
    WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CLASS_NAME, "label"))
    scorer = Scorer(read_trained(trained.weights))
    (wanted,) = scorer.probabilities([sentence])
    assert browser.find_element(By.CLASS_NAME, "label").text == scorer.labels[wanted.argmax()]
    rows = [row.text.split() for row in browser.find_elements(By.CLASS_NAME, "row")]
    assert rows == [[name, f"{value:.4f}"] for name, value in zip(scorer.labels, wanted, strict=True)]
    bars = [float(bar.get_attribute("value")) for bar in browser.find_elements(By.TAG_NAME, "progress")]
    assert bars == pytest.approx(wanted.tolist(), abs=1e-4)
    browser.find_element(By.ID, "text").clear()
    browser.find_element(By.ID, "text").send_keys(" \n")
    WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CLASS_NAME, "error"))
    assert "Row 1 has no text" in browser.find_element(By.CLASS_NAME, "error").text
    assert not [line for line in browser.get_log("browser") if "Content Security Policy" in line["message"]]


def test_a_request_that_is_begun_is_answered_before_it_stops(trained, tmp_path, command_environment, free_port):
    port = free_port()
    words = [sys.executable, "-m", "sentexp", "serve", f"run={trained.identity}", f"port={port}"]
    server = subprocess.Popen(words, cwd=tmp_path, env=command_environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert f"127.0.0.1:{port}" in server.stdout.readline()
    address, told = f"http://127.0.0.1:{port}", []
    ask(address, ["it is up"])
    long = some_texts(random.Random(2), 1000)
    client = threading.Thread(target=lambda: told.append(ask(address, long)))
    client.start()
    time.sleep(0.2)
    server.send_signal(signal.SIGTERM)
    output, _ = server.communicate(timeout=120)
    client.join()
    assert server.returncode == 0
    assert "stopped; requests that were begun had 30 s for their answers" in output
    assert [len(rows) for rows in told] == [1000]


def test_plain_mlflow_serves_the_same_model(trained, serve, free_port, tmp_path, command_environment):
    words = [sys.executable, "-m", "sentexp", "register", f"run={trained.identity}", "name=reviews"]
    done = subprocess.run(words, cwd=tmp_path, env=command_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command_environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command_environment["PATH"] = f"{Path(sys.executable).parent}:{command_environment['PATH']}"  # MLflow calls uvicorn
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/reviews@champion", "--port", str(port)]
    serve([*words, "--env-manager", "local"], tmp_path, "Application startup complete")
    texts = some_texts(random.Random(3), 20)
    wanted = Scorer(read_trained(trained.weights)).probabilities(texts)
    np.testing.assert_allclose(probabilities(ask(f"http://127.0.0.1:{port}", texts)), wanted, atol=1e-4)
