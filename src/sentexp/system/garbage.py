"""Garbage collection that leaves the libraries alone."""

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Collect no garbage meanwhile: Python looks for it hundreds of times while libraries are imported, and finds none.

    That takes a sixth of the time of the imports. Where collecting is off it stays so.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def freeze_imports(*modules: str) -> None:
    """Import these modules; the first call lets the garbage collector skip all that this process has imported.

    A run collects garbage when it ends: among the 800,000 objects that the libraries hold, that takes half a second.
    Call it before any model is loaded, as what it skips is never collected.
    """
    with nothing_collected():
        for module in modules:
            import_module(module)
    _freeze()


@functools.cache
def _freeze() -> None:
    gc.collect()
    gc.freeze()
