"""What the tests share: no network, a cache of their own, hand-written reviews, a tiny model and quick runs."""

import copy
import csv
import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import composing
import generated
import pytest
import soak
import torch
from hydra._internal.hydra import Hydra
from hypothesis import HealthCheck, settings
from hypothesis.internal.entropy import deterministic_PRNG
from matplotlib.figure import Figure
from repetition import recording  # noqa: F401 (a fixture)
from rounding import drift, rounding, smooth
from safetensors.torch import load_file
from sqlalchemy import Engine, event

from sentexp import config as config_module
from sentexp.cli.main import main
from sentexp.config import Config
from sentexp.data.batch import Texts
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.run.result import Result
from sentexp.run.train import train as train_run
from sentexp.training.module import ClassifierModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

load_config = config_module.load_config = composing.load_config  # before the tests import it
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")
LOOPBACK = ("127.", "::1", "localhost", "/")

POSITIVE = """
a warm and funny film that earns every laugh
the cast is wonderful from first scene to last
i left the cinema smiling and called my sister
one of the kindest stories told this year
the music lifts every quiet moment
a clever script with a generous heart
she gives the best performance of her life
beautifully shot and never dull
it made me cry and i was glad of it
the jokes land and the tears do too
an honest portrait of a difficult friendship
two hours passed like twenty minutes
the ending is perfect and surprising
bright playful and full of charm
a treat for anyone who loves good writing
the director trusts us and it pays off
i would happily watch it again tomorrow
fresh acting and a lovely sense of place
every detail feels true
a small film with a great soul
tender brave and very well made
the best comedy i have seen in years
gripping from the opening shot
a joy to look at and a joy to hear
""".strip().splitlines()

NEGATIVE = """
a cold and clumsy film that wastes its cast
the plot makes no sense from first scene to last
i left the cinema angry and wanted my money back
one of the laziest stories told this year
the music drowns every quiet moment
a stupid script with nothing to say
she looks as bored as i was
badly shot and always dull
it made me yawn and i was ashamed of it
the jokes fail and the tears feel fake
a dishonest portrait of a boring marriage
two hours felt like two days
the ending is silly and predictable
grey noisy and without any charm
a punishment for anyone who loves good writing
the director explains everything twice
i would not watch it again for money
stale acting and no sense of place
every detail feels false
a big film with an empty head
vulgar timid and very badly made
the worst comedy i have seen in years
tedious from the opening shot
a pain to look at and a pain to hear
""".strip().splitlines()

ROWS = [row for pair in zip(POSITIVE, NEGATIVE, strict=True) for row in ((pair[0], 1), (pair[1], 0))]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests of a soak have done."""
    if found := soak.table(terminalreporter.stats.get("passed", [])):
        terminalreporter.section(f"soak: {soak.SHARE:g} of the full size, SEED={soak.SEED}")
        terminalreporter.line(found)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any connection beyond this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else str(address)
        assert str(host).startswith(LOOPBACK), f"a test reached for {host}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def open_streams() -> None:
    """Take away the log handlers whose streams have ended with an earlier test: what they are to write is an error."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in [one for one in loggers if isinstance(one, logging.Logger)]:
        for handler in [*logger.handlers]:
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def no_pictures() -> Iterator[None]:
    """Leave the files of pictures empty: drawing takes longer than training the tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _leave_empty)
        yield


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Let hydra compose a command once: it does so before to see whether an experiment sets `hydra.mode`."""
    look = Hydra.get_mode

    def mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return look(hydra, config_name, overrides) if "experiment" in " ".join(overrides) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", mode)
        yield


_savefig = Figure.savefig


def _leave_empty(self: Figure, file: object, *rest: object, **options: object) -> None:
    if isinstance(file, str | Path):
        Path(file).touch()
    else:
        _savefig(self, file, *rest, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw in tests that are marked `draws`."""
    if request.node.get_closest_marker("draws") is not None:
        monkeypatch.setattr(Figure, "savefig", _savefig)


@pytest.fixture(scope="session")
def skipped_modules() -> set[str]:
    """Return the names of modules that the garbage collector skips, so far."""
    with deterministic_PRNG():  # hypothesis looks for its own generator with gc.get_referrers, which skips it as well
        pass
    return set()


@pytest.fixture(autouse=True)
def frozen_imports(skipped_modules: set[str]) -> None:
    """Let the garbage collector skip what imports have made: each run of a test collects garbage."""
    if len(sys.modules.keys() - skipped_modules) > 100:  # most are imported by the first test that needs them
        skipped_modules.update(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the session a cache of its own, one thread unless OMP_NUM_THREADS says otherwise, no hub."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENTEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small data sets of our own, each in the files of the public one of its name."""
    folder = tmp_path_factory.mktemp("corpora")
    generated.write_sst2(folder / "sst2")
    generated.write_fpb(folder / "fpb")
    generated.write_languages(folder / "multilingual")
    generated.write_imdb(folder / "imdb")
    return folder


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], PreTrainedTokenizerBase]":
    """Return a function from llama2, llama3 or gpt2 to a copy of a small tokenizer of that kind."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    generated.write_llama2(folder / "llama2", 900)
    generated.write_bytes(folder / "llama3", llama3=True)
    generated.write_bytes(folder / "gpt2", llama3=False)
    read = {file.name: AutoTokenizer.from_pretrained(file) for file in folder.iterdir()}
    return lambda name: copy.deepcopy(read[name])


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama with its tokenizer, in the hub's files."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    generated.write_llama(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in GLUE's layout: 32 train, 8 validation and 8 test sentences, half of each label."""
    folder = tmp_path_factory.mktemp("reviews")
    for name, rows in {"train": ROWS[:32], "validation": ROWS[32:40], "test": ROWS[40:]}.items():
        write_tsv(folder / f"{name}.tsv", rows)
    return folder


def write_tsv(file: Path, rows: list[tuple[str, int]]) -> None:
    """Write sentences and labels as GLUE does."""
    with file.open("w", newline="") as out:
        csv.writer(out, delimiter="\t").writerows([("sentence", "label"), *rows])


@pytest.fixture
def words(reviews: Path, tmp_path: Path) -> list[str]:
    """Return the overrides of a quick run: 4 steps of 8 rows, nothing recorded."""
    return [
        "model=tiny",
        "data=sst2",
        f"data.path={reviews}",
        "data.splits.validation=validation",
        "data.splits.test=test",
        "task.template='{text}'",
        "trainer.batch_size=8",
        "trainer.precision=fp32",
        "trainer.progress_bar=false",
        "trainer.log_every_n_steps=1",
        "plots=false",
        "tracking=none",
        f"output_dir={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def config(words: list[str]) -> Callable[..., Config]:
    """Return a function from overrides to the configuration of a quick run."""
    return lambda *overrides: load_config(*words, *overrides)


@pytest.fixture
def train(config: Callable[..., Config]) -> Callable[..., Result]:
    """Return a function that runs a quick configuration."""
    return lambda *overrides: train_run(config(*overrides))


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Let SQLite leave it to the system when stores reach the disk, which they need not outlive here."""

    def leave(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", leave)
    yield
    event.remove(Engine, "connect", leave)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of an MLflow store without runs: MLflow takes seconds to make one, and it can be copied."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> str:
    """Return the URI of an MLflow store in a folder of its own."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Return a function that gives the command line these words in this process: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[object, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["sentexp", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return command


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be the only one that torchrun has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in {**own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def torchrun(command_environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that starts processes of the command, or of a program, with these words; one by itself."""

    def start(
        *words: str, program: tuple[str, ...] = ("-m", "sentexp"), count: int = 2
    ) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        environment = command_environment | {"GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.run(
            [sys.executable, *launcher, *program, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,  # processes that wait for each other would do so for hours
        )

    return start


EPS = 1e-2
"""Of AdamW, where two ways of training are compared: it does not make a whole step of rounding."""


@pytest.fixture
def ragged() -> tuple[str, ...]:
    """Return overrides for steps of 20 rows and of 11, in micro-batches of 5 and of 1, too few for two."""
    batches = ("trainer.batch_size=5", "trainer.accumulate_grad_batches=4", "trainer.eval_batch_size=7")
    training = ("trainer.max_epochs=2", "trainer.monitor=validation/loss", "optim.lr=1e-2", f"optim.eps={EPS}")
    return ("data.train_subset=31", *batches, *training, "baseline=false")


@pytest.fixture
def same() -> Callable[..., None]:
    """Return a function that compares a `ragged` result with that in another folder: metrics, counts, weights, losses.

    What has steps is not compared: rounding can move a row over an edge.
    """
    tolerance = rounding() + drift(1e-2, 4, EPS, gradient=0.3)

    def losses(folder: Path, name: str) -> dict[int, float]:
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return {row["step"]: row[name] for row in rows if name in row}

    def compare(result: Result, folder: Path) -> None:
        other = Result.load(json.loads((folder / "result.json").read_text()), folder)
        assert (other.identity, other.answers.keys()) == (result.identity, result.answers.keys())
        assert [sum(row) for row in other.confusion] == [sum(row) for row in result.confusion] == [4, 4]
        for name in ("train/loss", "validation/loss"):
            assert losses(folder, name) == pytest.approx(losses(result.folder, name), abs=tolerance), name
        first, last = losses(folder, "validation/loss").values()
        assert abs(first - last) > 3 * tolerance, "rounding would decide which weights are the best"
        assert other.metrics.keys() == result.metrics.keys()
        for name in ("best/step", "train/steps"):
            assert other.metrics[name] == result.metrics[name], name
        assert smooth(other.metrics) == pytest.approx(smooth(result.metrics), abs=tolerance)
        assert {"test/loss", "best/loss", "test/brier"} <= smooth(result.metrics).keys()
        own, others = (load_file(next(run.weights.glob("*.safetensors"))) for run in (result, other))
        assert own.keys() == others.keys()
        for name in own:
            torch.testing.assert_close(others[name], own[name], rtol=0, atol=tolerance)

    return compare


@pytest.fixture
def worsening(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[ClassifierModule], bool]], None]:
    """Return a function after which every row is wrong in an evaluation of a training, where a condition says so."""

    def worsen(condition: Callable[[ClassifierModule], bool]) -> None:
        original = ClassifierModule.keep_validation

        def keep(self: ClassifierModule, logits: torch.Tensor, targets: torch.Tensor) -> None:
            if self.trainer.state.fn == "fit" and self.trainer.validating and condition(self):
                logits = 20.0 * (1 - torch.nn.functional.one_hot(targets, logits.shape[1]))
            original(self, logits, targets)

        monkeypatch.setattr(ClassifierModule, "keep_validation", keep)

    return worsen


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory run out where a training step has more than two rows."""
    original = SequenceClassifier.losses

    def losses(self: SequenceClassifier, texts: Texts, targets: torch.Tensor) -> torch.Tensor:
        if len(targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(self, texts, targets)

    monkeypatch.setattr(SequenceClassifier, "losses", losses)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let this process, and those that it starts, be interrupted.

    A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which a training is interrupted after so many steps."""

    @contextmanager
    def interrupt(steps: int) -> Iterator[None]:
        original = ClassifierModule.training_step

        def step(self: ClassifierModule, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == steps:
                raise KeyboardInterrupt
            return original(self, batch, batch_idx)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(ClassifierModule, "training_step", step)
            yield

    return interrupt


@pytest.fixture
def command_environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment for a command run in a process of its own."""
    return {**os.environ, "SENTEXP_CACHE": os.environ["SENTEXP_CACHE"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def in_a_process(command_environment: dict[str, str], tmp_path: Path) -> Callable[..., tuple[int, set[str], str]]:
    """Return a function that gives a command in a process of its own, as libraries are imported once.

    It returns the exit code, the modules that the process has imported, and what it wrote to stderr.
    """

    def run(*words: str) -> tuple[int, set[str], str]:
        code = (
            "import sys, json; from sentexp.cli.main import main\n"
            f"sys.argv[1:] = {list(words)}\n"
            "try: main()\nexcept SystemExit as ended: code = ended.code\n"
            "print(json.dumps([code, list(sys.modules)]))"
        )
        call = [sys.executable, "-c", code]
        done = subprocess.run(call, cwd=tmp_path, env=command_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ended, modules = json.loads(done.stdout.splitlines()[-1])
        return ended, set(modules), done.stderr

    return run
