"""What slow tests share: real public data, servers in processes of their own, a browser."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import warm
from whole_sweeps import mlflow_words

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def soaked(record_property: Callable[[str, object], None]) -> Callable[[int, str, str], None]:
    """Return a function that adds to the table at the end: how many, of what, and what came of it."""
    return lambda count, what, outcome: record_property("soak", [count, what, outcome])


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real public data beside the checkout; skip where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs the public data sets and tokenizers in ../shared/data, which is not here")
    return SHARED


@pytest.fixture
def sweep_words(reviews: Path) -> list[str]:
    """Return what comes after `python` for a sweep of quick runs, but for its axes."""
    return [
        "-m", "sentexp", "--multirun", "model=tiny", "data=sst2", f"data.path={reviews}",
        "data.splits.validation=validation", "data.splits.test=test", "trainer.progress_bar=false",
        "trainer.batch_size=4", "trainer.max_epochs=3", "trainer.save_steps=5", "tracking.system_metrics=false",
        "baseline=false",
    ]  # fmt: skip


@pytest.fixture
def start(command_environment: dict[str, str]) -> Callable[..., subprocess.Popen[bytes]]:
    """Return a function that starts Python in a folder, in a process of its own; its words go to console.txt there."""

    def begin(folder: Path, *words: str) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        with (folder / "console.txt").open("a") as console:
            return subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=command_environment, stdout=console, stderr=console
            )

    return begin


@pytest.fixture
def fork(command_environment: dict[str, str]) -> Callable[..., warm.Process]:
    """Return a function like `start`, whose process is warm."""

    def begin(folder: Path, *words: str) -> warm.Process:
        folder.mkdir(exist_ok=True)
        console = folder / "console.txt"
        return warm.Process(list(words), folder, command_environment, console, console)

    return begin


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that returns a port of the loopback on which nothing listens."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture
def forked(
    command_environment: dict[str, str], tmp_path: Path, free_port: Callable[[], int]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function like that of `torchrun`, whose processes are warm."""

    def start(
        *words: str, program: tuple[str, ...] = ("-m", "sentexp"), count: int = 2
    ) -> subprocess.CompletedProcess[str]:
        environment = command_environment | {"GLOO_SOCKET_IFNAME": "lo"}
        if count > 1:
            environment |= {"TORCHELASTIC_RUN_ID": "forked", "WORLD_SIZE": str(count)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            files = [Path(folder) / name for name in ("output", "errors")]
            started = [warm.Process([*program, *words], tmp_path, environment | rank, *files) for rank in ranks]
            until = time.monotonic() + 600  # processes that wait for each other would do so for hours
            while None in (codes := [process.poll() for process in started]) and not any(codes):
                assert time.monotonic() < until, files[1].read_text()
                time.sleep(0.1)  # as torchrun does
            for process in started:
                process.terminate()  # when one has failed, the others are ended
                process.join(30)
                process.kill()
            codes = [process.wait() for process in started]
            return subprocess.CompletedProcess(words, int(any(codes)), *(file.read_text() for file in files))

    return start


@pytest.fixture
def serve(command_environment: dict[str, str]) -> Iterator[Callable[..., None]]:
    """Return a function that starts a server in a folder and waits until its output holds a text that says so.

    With `fork` it is a warm process, and its words are those for Python.
    """
    servers: list[subprocess.Popen[bytes] | warm.Process] = []

    def begin(words: list[str], folder: Path, ready: str, fork: bool = False) -> None:
        output = folder / "server.txt"
        with output.open("w") as out:
            if fork:
                servers.append(warm.Process(words, folder, command_environment, output, output))
            else:
                servers.append(subprocess.Popen(words, cwd=folder, env=command_environment, stdout=out, stderr=out))
        server = servers[-1]
        while ready not in output.read_text():
            assert server.poll() is None, output.read_text()
            time.sleep(0.1)

    yield begin
    for server in servers:
        server.terminate()
        server.wait()


@pytest.fixture
def mlflow_server(
    serve: Callable[..., None], command_environment: dict[str, str], free_port: Callable[[], int]
) -> Callable[[Path], str]:
    """Return a function that serves the MLflow store of a folder, with its UI, and returns the address."""

    def begin(folder: Path) -> str:
        command_environment.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        port = free_port()
        serve(mlflow_words(port), folder, "Application startup complete")
        return f"http://127.0.0.1:{port}"

    return begin


@pytest.fixture
def browser() -> "Iterator[Chrome]":
    """Return a headless Chromium that reaches this machine only; skip where it is missing."""
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if program is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = program
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1500,760"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=Service(driver)) as opened:
        yield opened
