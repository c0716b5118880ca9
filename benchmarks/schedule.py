"""Sweeps over several GPUs by simulation: when the last worker ends, and the least that any schedule takes.

    python benchmarks/schedule.py                  # seconds

10 to 1,000 runs that can train together on 1 to 64 workers. Their durations are alike, spread (log-normal, sigma 1), or
spread and estimated wrongly: the groups are cut by estimates, each off by a factor (log-normal, sigma 0.5), and last as
long as they do. Compared with a lower bound, and with groups of one run in the order in which they are given, which is
what a launcher does that knows no groups. Prints ratios, medians of several draws; writes schedule.json beside this.
"""

import argparse
import json
import random
import statistics
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sentexp.sweeps.schedule import SHARED, Group, cut, length_of, simulate

RUNS, WORKERS = (10, 30, 100, 300, 1000), (1, 2, 4, 8, 16, 64)
MOST = 16
SPREADS = {"alike": (0.0, 0.0), "spread": (1.0, 0.0), "spread, wrong estimates": (1.0, 0.5)}


def lower_bound(lengths: Mapping[int, float], workers: int) -> float:
    """Return a time before which no schedule of runs that can train together ends.

    What a group spends once is least where runs are sorted by length and groups are as large as they may be. Of the
    j * workers + 1 longest runs, one worker has j + 1, and at least one group.
    """
    longest = sorted(lengths.values(), reverse=True)
    bounds = [longest[0], ((1 - SHARED) * sum(longest) + SHARED * sum(longest[::MOST])) / workers]
    for j in range(1, (len(longest) - 1) // workers + 1):
        some = longest[j * (workers - 1) : j * workers + 1]
        bounds.append((1 - SHARED) * sum(some) + SHARED * some[0])
    return max(bounds)


def end_of(groups: list[Group], lengths: Mapping[int, float], workers: int) -> float:
    """Return when the last worker ends, with the durations as they are."""
    return simulate([length_of([lengths[run] for run in group.runs]) for group in groups], workers)


def draw(runs: int, spread: float, error: float, seed: int) -> tuple[dict[int, float], dict[int, float]]:
    """Return durations of runs, and estimates of them."""
    dice = random.Random(seed)
    lengths = {run: dice.lognormvariate(0, spread) for run in range(runs)}
    return lengths, {run: length * dice.lognormvariate(0, error) for run, length in lengths.items()}


def main() -> None:
    """Simulate all sizes, and write the medians down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=9)
    draws = parser.parse_args().draws
    found = []
    for name, (spread, error) in SPREADS.items():
        table = Table("runs", *map(str, WORKERS), title=f"{name}: end over the lower bound, and one by one in brackets")
        for runs in RUNS:
            cells = []
            for workers in WORKERS:
                ratios, plain = [], []
                for seed in range(draws if spread else 1):
                    lengths, estimates = draw(runs, spread, error, seed)
                    least = lower_bound(lengths, workers)
                    groups = cut([list(lengths)], estimates, workers, MOST)
                    ratios.append(end_of(groups, lengths, workers) / least)
                    plain.append(simulate(list(lengths.values()), workers) / least)
                ratio, other = statistics.median(ratios), statistics.median(plain)
                found.append(
                    {"durations": name, "runs": runs, "workers": workers, "groups": ratio, "one_by_one": other}
                )
                cells.append(f"{ratio:.2f} ({other:.2f})")
            table.add_row(f"{runs:,}", *cells)
        Console().print(table)
    Path(__file__).with_suffix(".json").write_text(json.dumps({"draws": draws, "ratios": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
