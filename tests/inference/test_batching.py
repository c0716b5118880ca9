"""Texts of many callers are scored together, and each gets its own."""

import threading

import numpy as np
import pytest

from sentexp.inference.batching import Batcher


def squares(texts):
    return np.array([[float(text) ** 2] for text in texts])


def ask_all(batcher, asked):
    """Ask from a thread each, all at once; return what each was told."""
    told, ready = {}, threading.Barrier(len(asked))

    def ask(number, texts):
        ready.wait()
        try:
            told[number] = batcher(texts)
        except ValueError as error:
            told[number] = error

    threads = [threading.Thread(target=ask, args=item) for item in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_what_waits_is_scored_together_and_given_back_apart():
    sizes, first, gate = [], threading.Event(), threading.Event()

    def score(texts):
        sizes.append(len(texts))
        first.set()
        gate.wait(60)
        return squares(texts)

    batcher = Batcher(score)
    asked = [[str(number)] * (1 + number % 3) for number in range(20)]
    opener = threading.Thread(target=batcher, args=(["1"],))
    opener.start()
    first.wait(60)  # the model is busy: the others wait for it
    waiting = threading.Timer(0.2, gate.set)
    waiting.start()
    told = ask_all(batcher, asked)
    opener.join()
    assert len(sizes) < 1 + len(asked)
    assert sum(sizes) == 1 + sum(map(len, asked))
    for number, texts in enumerate(asked):
        np.testing.assert_array_equal(told[number], squares(texts))


def test_a_failure_is_told_to_the_caller_whose_texts_have_failed():
    batcher = Batcher(squares)
    told = ask_all(batcher, [["3"], ["no number"], ["4", "5"]])
    assert isinstance(told[1], ValueError)
    np.testing.assert_array_equal(told[0], [[9]])
    np.testing.assert_array_equal(told[2], [[16], [25]])
    with pytest.raises(ValueError, match="could not convert"):
        batcher(["x"])
    np.testing.assert_array_equal(batcher(["2"]), [[4]])


def test_no_batch_grows_beyond_its_most():
    sizes = []

    def score(texts):
        sizes.append(len(texts))
        return squares(texts)

    ask_all(Batcher(score, most=4), [["1", "2"]] * 16)
    assert max(sizes) <= 5
