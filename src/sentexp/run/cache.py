"""What the runs of a sweep share that follow each other in one process: data, tokens, backbone, features."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from sentexp.config import Config
from sentexp.tracking.identity import digest_of

T = TypeVar("T")
KEPT = 4
"""Data sets, token sets and tokenizers that a process keeps for the next run of a sweep."""

_cache: dict[str, OrderedDict[str, Any]] = {}


def cached(config: Config, kind: str, key: Any, build: Callable[[], T], most: int = KEPT) -> T:
    """Return what `build` returns; the runs of a sweep that follow each other in a process build it once for a key.

    Args:
        config: of the run.
        kind: of thing.
        key: what the thing depends on.
        build: makes it.
        most: how many of the kind are kept; the oldest are dropped before another is made.
    """
    if config.sweep.name is None:
        return build()
    entries = _cache.setdefault(kind, OrderedDict())
    name = digest_of(key)
    if name not in entries:
        while len(entries) >= most:
            entries.popitem(last=False)
        entries[name] = build()
    entries.move_to_end(name)
    return entries[name]  # type: ignore[no-any-return]


def clear_cache(kind: str | None = None) -> None:
    """Keep nothing of a kind, or nothing at all, for further runs."""
    for name in [kind] if kind is not None else list(_cache):
        _cache.pop(name, None)
