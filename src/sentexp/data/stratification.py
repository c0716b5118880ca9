"""Stratification: the strata of rows, rows that must stay together, and their order within a stratum."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sentexp.data.scores import quantile_bins
from sentexp.data.sources import SLICE
from sentexp.data.targets import as_numbers, rarest_labels, target_array
from sentexp.data.text_hash import Numbers

if TYPE_CHECKING:
    import pyarrow as pa


def stratified_position(hashes: Numbers, strata: Sequence[Numbers], sizes: Numbers) -> Numbers:
    """Return the place of each unit in its stratum, in (0, 1): the share of rows before its middle.

    With several levels of strata, units are first ordered within the finest (all levels together), and these orders
    are then merged evenly, so that each level has its natural proportions in every prefix.

    Args:
        hashes: of the units, uint64, shape (units,); the order within a stratum.
        strata: from coarse to fine, a stratum number for each unit.
        sizes: rows of each unit.
    """
    order: Numbers = hashes
    place = np.zeros(len(hashes))
    for depth in range(len(strata), 0, -1):
        stratum = np.unique(np.stack(strata[:depth]), axis=1, return_inverse=True)[1].reshape(-1)
        rank = np.lexsort((hashes, order, stratum))
        grouped, rows = stratum[rank], sizes[rank]
        before = np.cumsum(rows) - rows
        first = np.flatnonzero(np.diff(grouped, prepend=-1))
        starts = before[first][np.cumsum(np.diff(grouped, prepend=-1) != 0) - 1]
        totals = np.bincount(grouped, weights=rows)[grouped]
        place[rank] = (before - starts + rows / 2) / totals
        order = place.copy()
    return place


def strata_of(rows: "pa.Table") -> list[Numbers]:
    """Return the levels of stratification: those of the labels, then the slices."""
    slices = [name for name in rows.column_names if name.startswith(SLICE)]
    labels = _label_strata(target_array(rows.column("label")))
    return [*labels, *(numbered(rows.column(name))[1] for name in slices)]


def _label_strata(targets: Numbers) -> list[Numbers]:
    """Return the class, or the tenth that a score is in, or the rarest label of a set and then the set."""
    if targets.ndim > 1:
        return [rarest_labels(targets), as_numbers(targets)]
    return [quantile_bins(targets) if targets.dtype.kind == "f" else targets]


def numbered(column: "pa.ChunkedArray") -> tuple[list[str], Numbers]:
    """Return the different values in their order, a null as an empty one, and the number of each row's value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = pc.fill_null(column.cast(pa.large_string()), "")
    values = sorted(pc.unique(filled).to_pylist())
    return values, pc.index_in(filled, pa.array(values, pa.large_string())).to_numpy().astype(np.int64)


def group_units(keys: Numbers, rows: "pa.Table") -> Numbers:
    """Return the number of the unit of each row: rows with the same text or the same group are of one unit."""
    texts: Numbers = np.unique(keys, return_inverse=True)[1]
    if "group" not in rows.column_names:
        return texts
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    values, groups = numbered(rows.column("group"))
    nodes = int(texts.max(initial=-1)) + 1
    grouped = np.asarray(values, dtype=object)[groups] != ""  # a row without a group is on its own
    ends = (texts[grouped], nodes + groups[grouped])
    size = nodes + len(values)
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(size, size))
    components: Numbers = connected_components(graph, directed=False)[1]
    return np.unique(components[texts], return_inverse=True)[1]


def most_frequent(values: Numbers, units: Numbers, count: int) -> Numbers:
    """Return the most frequent value of each unit, the smallest of several."""
    width = int(values.max(initial=0)) + 1
    pairs, frequency = np.unique(units * width + values, return_counts=True)
    rank = np.lexsort((pairs, -frequency, pairs // width))
    first = np.flatnonzero(np.diff(pairs[rank] // width, prepend=-1))
    chosen = np.zeros(count, int)
    chosen[pairs[rank][first] // width] = pairs[rank][first] % width
    return chosen
