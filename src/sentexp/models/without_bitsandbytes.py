"""PEFT without bitsandbytes, which it imports for every adapter: that takes as long as PyTorch itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "bitsandbytes"


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Let PEFT import no bitsandbytes; where it has been imported, as for a model in 4 bits, nothing is changed."""
    if NAME in sys.modules:
        yield
        return
    sys.modules[NAME] = None  # type: ignore[assignment]  # Python then finds no such module
    try:
        yield
    finally:
        if sys.modules.get(NAME) is None:
            sys.modules.pop(NAME, None)
        _look_again()


def _look_again() -> None:
    """Let PEFT ask anew whether there is bitsandbytes, for a later model in 4 bits."""
    if "peft" not in sys.modules:
        return
    from peft import import_utils

    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()
