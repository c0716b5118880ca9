"""Which runs of a sweep form a group, and which group a worker takes next.

A group trains together in one process. Cutting a sweep for several workers is the problem that PLoRA states (Yan et al.
2025, arXiv:2508.02932): larger groups read the backbone less often, smaller ones let all workers end at the same time.
Here runs that can train together are cut into parts of about equal length, for several numbers of parts; the number
whose simulated end is earliest wins. A worker that is free takes the longest group left (Graham 1969), whatever the
estimates were.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHARED = 0.25
"""The share of a run's time that runs which train together spend once: 0.22 to 0.31 in benchmarks/fused_curve.json."""
TRIES = 4
"""Numbers of parts that are tried, for each worker."""
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Group:
    """Runs, by their numbers, that one process does; `together`: they train together, else one after the other."""

    runs: tuple[int, ...]
    length: float
    together: bool


def length_of(lengths: Sequence[float]) -> float:
    """Return how long runs of these lengths take that train together."""
    return SHARED * max(lengths) + (1 - SHARED) * sum(lengths)


def cut(families: Sequence[Sequence[int]], lengths: Mapping[int, float], workers: int, most: int) -> list[Group]:
    """Return groups, the longest first.

    Args:
        families: runs that can train together; a run that cannot is a family of its own.
        lengths: estimated, of each run, in any unit.
        workers: how many groups are done at once.
        most: runs of a group.
    """
    best: list[Group] = []
    end = math.inf
    for parts in range(1, TRIES * workers + 1):
        groups = _cut_into(families, lengths, parts, most)
        found = simulate([group.length for group in groups], workers)
        slack = 1 + ROUNDING if len(groups) <= workers else 1 - ROUNDING  # estimates are wrong: leave no worker idle
        if not best or found <= end * slack:
            best, end = groups, min(end, found)
    return best


def simulate(lengths: Sequence[float], workers: int) -> float:
    """Return when the last of groups ends that workers take in this order, each the next one when it is free."""
    free = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def _cut_into(families: Sequence[Sequence[int]], lengths: Mapping[int, float], parts: int, most: int) -> list[Group]:
    """Return about as many groups of about equal length, the longest first; families are never mixed."""
    total = sum(lengths[run] for family in families for run in family)
    groups = []
    for family in families:
        own = sum(lengths[run] for run in family)
        share = round(parts * own / total) if total else 1
        for runs in _parts_of(family, lengths, max(1, share), most):
            length = length_of([lengths[run] for run in runs])
            groups.append(Group(tuple(sorted(runs)), length, together=len(runs) > 1))
    return sorted(groups, key=lambda group: (-group.length, group.runs))


def _parts_of(family: Sequence[int], lengths: Mapping[int, float], parts: int, most: int) -> list[list[int]]:
    """Cut runs, sorted by length, where the sum of their lengths passes another part of the whole.

    Runs of like length are together: a group lasts as long as its longest run.
    """
    total = sum(lengths[run] for run in family) or 1.0
    found: dict[int, list[int]] = {}
    before = 0.0
    for run in sorted(family, key=lambda run: (-lengths[run], run)):
        middle = before + lengths[run] / 2
        found.setdefault(int(parts * middle / total), []).append(run)
        before += lengths[run]
    return [part for runs in found.values() for part in _at_most(runs, most)]


def _at_most(runs: list[int], most: int) -> list[list[int]]:
    """Cut runs into the fewest parts of at most so many, of sizes that differ by one at most."""
    parts = -(-len(runs) // most)
    return [runs[len(runs) * part // parts : len(runs) * (part + 1) // parts] for part in range(parts)]
