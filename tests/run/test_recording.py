"""How the record of a run ends."""

import signal

import pytest

from sentexp.run.recording import recorded
from sentexp.tracking.store import Record


class Terminated(BaseException):
    """SIGTERM."""


@pytest.fixture
def ended():
    """How the record was ended, in order."""
    return []


@pytest.fixture
def record(ended, monkeypatch):
    """Return a record that notes how it is ended; SIGTERM comes while the traceback is written."""

    def log_text(text, name):
        signal.raise_signal(signal.SIGTERM)
        ended.append((name, text.splitlines()[-1]))

    found = Record()
    monkeypatch.setattr(found, "log_text", log_text)
    monkeypatch.setattr(found, "finish", ended.append)
    return found


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("the roof fell in"), "FAILED"), (KeyboardInterrupt("enough"), "KILLED")]
)
def test_a_launcher_that_ends_the_rest_of_a_run_leaves_no_half_record(error, status, record, ended):
    def end(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Terminated), recorded(record):
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [("traceback.txt", f"{type(error).__name__}: {error}"), status]
