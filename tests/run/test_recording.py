"""How the record of a run ends."""

import signal

import pytest

from sentexp.run.recording import track_run
from sentexp.tracking.run_logger import RunLogger


class Terminated(BaseException):
    """SIGTERM."""


@pytest.fixture
def ended():
    """How the record was ended, in order."""
    return []


@pytest.fixture
def logger(ended, monkeypatch):
    """Return a record that notes how it is ended; SIGTERM comes while the traceback is written."""

    def log_text(text, name):
        signal.raise_signal(signal.SIGTERM)
        ended.append((name, text.splitlines()[-1]))

    logger = RunLogger()
    monkeypatch.setattr(logger, "log_text", log_text)
    monkeypatch.setattr(logger, "finish", ended.append)
    return logger


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("the roof fell in"), "FAILED"), (KeyboardInterrupt("enough"), "KILLED")]
)
def test_a_launcher_that_ends_the_rest_of_a_run_leaves_no_half_record(error, status, logger, ended):
    def end(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Terminated), track_run(logger):
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [("traceback.txt", f"{type(error).__name__}: {error}"), status]
