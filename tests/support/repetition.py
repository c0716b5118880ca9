"""Recorded steps on the CPU: a substitute for a CUDA graph repeats the work on the tensors that were recorded."""

import pytest

from sentexp.models import cuda_graphs
from sentexp.run import inputs


class Repetition:
    """Repeats the work where a CUDA graph would replay it."""

    count = 0

    def __init__(self, work, pool, generators=()):
        del pool, generators
        self._work = work

    def replay(self):
        """Do the work again."""
        Repetition.count += 1
        return self._work()


@pytest.fixture
def recording(monkeypatch):
    """Record steps on the CPU; return a function that takes another substitute for a graph."""

    def use(graph):
        monkeypatch.setattr(cuda_graphs, "CudaGraph", graph)

    monkeypatch.setattr(inputs, "uses_cuda_graphs", lambda config, *_: config.trainer.cuda_graphs is not False)
    monkeypatch.setattr(Repetition, "count", 0)
    use(Repetition)
    return use
