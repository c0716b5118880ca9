"""When shapes are recorded, and in which order the usual way, the recording and their comparison come."""

import pytest
import torch

from sentexp.models import cuda_graphs
from sentexp.models.cuda_graphs import Graphs


@pytest.fixture
def events(monkeypatch):
    """Return the list of what was done; a substitute for a graph repeats the work."""
    done = []

    class Repetition:
        def __init__(self, work, pool, generators):
            done.append("record")
            self.replay = work

    monkeypatch.setattr(cuda_graphs, "CudaGraph", Repetition)
    return done


def graphs(events, fault=""):
    def check(batch):
        events.append("usual")

        def compare(recorded):
            events.append("compare")
            assert torch.equal(recorded(batch), 2 * batch[0])
            return fault

        return compare

    return Graphs(lambda batch: 2 * batch[0], check)


def batch(rows):
    return (torch.arange(float(rows)), rows > 0)


def test_the_first_recording_is_compared_and_further_shapes_are_recorded_at_once(events):
    own = graphs(events)
    assert own.get(batch(3)) is None  # the usual way allocates what is allocated once
    assert own.get(batch(4)) is None
    assert events == []
    assert torch.equal(own.get(batch(3))(batch(3)), torch.tensor([0.0, 2.0, 4.0]))
    assert events == ["usual", "record", "compare"]  # nothing is made for the first time while it is recorded
    assert torch.equal(own.get(batch(5))(batch(5)), 2 * torch.arange(5.0))
    assert events == ["usual", "record", "compare", "record"]
    assert own.summary == "2 shapes recorded"


def test_there_are_few_recordings(events, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST_SHAPES", 2)
    own = graphs(events)
    for rows in (3, 3, 4):
        own.get(batch(rows))
    assert own.get(batch(5)) is None
    assert own.get(batch(5)) is None
    assert own.get(batch(4)) is not None


def test_after_a_fault_nothing_is_recorded_any_more(events, capsys):
    own = graphs(events, "the scores would differ")
    assert [own.get(batch(3)) for _ in range(4)] == [None] * 4
    assert events.count("record") == 1
    assert "CUDA graphs are off: the scores would differ." in capsys.readouterr().out
    assert own.summary == "off: the scores would differ"
