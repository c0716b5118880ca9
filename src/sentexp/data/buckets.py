"""Batches of few sizes, for CUDA graphs: each graph is of one shape.

The rows and the tokens of a batch are made up to the next size by filler rows, which do not count in any loss, metric
or gradient. There are half as many of them as rows at least, so that none is much longer than the rows.
"""

from collections.abc import Sequence


def bucket(count: int) -> int:
    """Return the next size: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on, powers of two and the middle between two of them.

    If all counts are equally likely, a sixth of what is computed is filler.
    """
    power = 1 << (count - 1).bit_length()
    middle = power * 3 // 4
    return middle if middle >= count else power


def filler_rows(rows: Sequence[list[int]], prefix: int, added: Sequence[int], added_to_filler: int) -> list[list[int]]:
    """Return the token ids of the filler rows of a batch.

    Args:
        rows: token ids.
        prefix: how many tokens all rows begin with; so do these.
        added: tokens that are put behind each row.
        added_to_filler: tokens that are put behind each filler row.
    """
    lengths = [len(row) - prefix + more for row, more in zip(rows, added, strict=True)]
    beginning, token = rows[0][:prefix], rows[0][-1]
    return [[*beginning, *[token] * length] for length in filler_lengths(lengths, added_to_filler)]


def filler_lengths(lengths: Sequence[int], added: int = 0) -> list[int]:
    """Return the tokens of each filler row that takes a batch to the next size.

    Args:
        lengths: tokens of each row, those that are put behind it included.
        added: tokens that are put behind each filler row; they are not among those returned.
    """
    count = bucket(-(-3 * len(lengths) // 2)) - len(lengths)
    total = sum(lengths) + count * added
    missing = bucket(total + count) - total
    return [missing // count + (number < missing % count) for number in range(count)]
