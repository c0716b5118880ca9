"""How the record of a run ends."""

import signal

import pytest

from sentexp.recording import recorded
from sentexp.tracking.store import Record


class Terminated(BaseException):
    """SIGTERM."""


class Written(Record):
    """Keeps how it was ended; SIGTERM comes while the traceback is written."""

    def __init__(self):
        self.ended = []

    def log_text(self, text, name):
        signal.raise_signal(signal.SIGTERM)
        self.ended.append((name, text.splitlines()[-1]))

    def finish(self, status):
        self.ended.append(status)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("the roof fell in"), "FAILED"), (KeyboardInterrupt("enough"), "KILLED")]
)
def test_a_launcher_that_ends_the_rest_of_a_run_leaves_no_half_record(error, status):
    def end(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    record = Written()
    try:
        with pytest.raises(Terminated), recorded(record):
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert record.ended == [("traceback.txt", f"{type(error).__name__}: {error}"), status]
