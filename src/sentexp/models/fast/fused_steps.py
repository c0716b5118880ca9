"""Optimizer steps of runs that train together, as one CUDA graph for all whose batches have the same shape.

Runs that differ in rank or learning rate alone read batches of the same shape at the same time: their steps are
recorded together, and a step of all of them is one launch. Others replay graphs of their own.
"""

from typing import Any

from sentexp.models.cuda_graphs import shape_of
from sentexp.models.fast.run_thread import RunThread, StepOutput, StepRequest

MOST_SETS = 4
"""Sets of runs whose steps are recorded together: runs that differ in their order of rows meet in ever new ones."""


class FusedSteps:
    """Answers the requests of runs for whole steps."""

    def __init__(self) -> None:
        self._recorded: dict[tuple[RunThread, ...], Any] = {}
        self.largest: int = 0
        """The most runs whose steps were one."""

    def answer(self, runs: list[RunThread]) -> None:
        """Do the steps of runs that can be done together; the others do them alone.

        Args:
            runs: that wait for a step.
        """
        alike: dict[Any, list[RunThread]] = {}
        for run in runs:
            assert isinstance(run.request, StepRequest)
            alike.setdefault(shape_of(run.request.batch), []).append(run)
        for together in alike.values():
            losses = self._step(tuple(together)) if len(together) > 1 else None
            for number, run in enumerate(together):
                run.answer = StepOutput(None if losses is None else losses[number])

    def keep(self, runs: list[RunThread]) -> None:
        """Give the memory of recordings back that hold a run which is none of these."""
        self._recorded = {own: steps for own, steps in self._recorded.items() if set(own) <= set(runs)}

    def _step(self, runs: tuple[RunThread, ...]) -> list[Any] | None:
        requests = [run.request for run in runs if isinstance(run.request, StepRequest)]
        if runs not in self._recorded:
            if len(self._recorded) == MOST_SETS:
                return None
            first, *others = (request.graphs for request in requests)
            self._recorded[runs] = first.with_others(others)
        batches = tuple(request.batch for request in requests)
        step = self._recorded[runs].together(batches, [request.seed for request in requests])
        if step is None:
            return None
        self.largest = max(self.largest, len(runs))
        return step()  # type: ignore[no-any-return]
