"""Errors caused by user input, shown as one sentence without a traceback; out of memory, which a run handles itself."""

import sys
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the input: the message names the key or row, the value, the legal values and what to do."""


class OutOfMemory(Exception):
    """The device or the machine had no memory left for a batch."""


def require(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of a library says; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return names as a sentence lists them: the first ones, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def complain(sentence: str) -> None:
    """Print a sentence on the console's error stream."""
    print(f"sentexp: {sentence}", file=sys.stderr, flush=True)
