"""How much of a soak a test does, and what its chances come from: `make soak` does all of it, `make slow` a tenth."""

import os

SHARE, SEED = float(os.environ.get("SOAK", "0.1")), int(os.environ.get("SEED", "0"))


def share_of(count: int, least: int = 1) -> int:
    """Return how many are done of so many at full size."""
    return max(least, round(SHARE * count))


def table(reports):
    """Return what tests have recorded with `soaked` as a table in Markdown; cases of one kind are one line."""
    found = {}
    for report in reports:
        for count, what, outcome in [value for key, value in report.user_properties if key == "soak"]:
            line = found.setdefault((what, outcome), [0, 0.0])
            line[0] += count
            line[1] += report.duration
    lines = [f"| {count:,} {what} | {outcome} | {took:.0f} |" for (what, outcome), (count, took) in found.items()]
    return "\n".join(["| what | outcome | seconds |", "| --- | --- | --- |", *lines]) if lines else ""
