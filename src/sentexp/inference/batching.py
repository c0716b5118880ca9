"""Texts of many callers, scored together: a server's requests come one by one, and a model reads many at once."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from numpy.typing import NDArray

MOST = 256
"""Texts that are waited for no longer; a caller may still bring more at once."""


@dataclass(slots=True, eq=False)
class _Asked:
    texts: list[str]
    answer: "Future[NDArray[Any]]" = field(default_factory=Future)


class Batcher:
    """Called from any number of threads, it scores in one: whatever waits when the model is free goes in together.

    A failure is that of the caller whose texts have failed: the others of its batch are scored again without them.

    Args:
        score: gives an array of one row for each text.
        most: texts after which no more callers are taken into a batch.
    """

    def __init__(self, score: Callable[[Sequence[str]], NDArray[Any]], most: int = MOST) -> None:
        self._score, self._most = score, most
        self._waiting: SimpleQueue[_Asked] = SimpleQueue()
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    def __call__(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return what `score` gives for these texts; raises what it raises."""
        asked = _Asked(list(texts))
        self._waiting.put(asked)
        return asked.answer.result()

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while sum(len(asked.texts) for asked in batch) < self._most:
                try:
                    batch.append(self._waiting.get_nowait())
                except Empty:
                    break
            self._answer(batch)

    def _answer(self, batch: list[_Asked]) -> None:
        try:
            probabilities = self._score([text for asked in batch for text in asked.texts])
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for asked in batch:
                    self._answer([asked])
            return
        start = 0
        for asked in batch:
            asked.answer.set_result(probabilities[start : start + len(asked.texts)])
            start += len(asked.texts)
