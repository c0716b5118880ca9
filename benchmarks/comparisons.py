"""Whether comparisons keep their word: simulated runs whose true metrics are known.

    python benchmarks/comparisons.py               # 300 pairs and 200 sweeps of 8 for each of 9 settings

Rows are of three ordered classes; some are hard for every run. The skill of a run is that of its configuration and,
where there are several seeds, a deviation of its own. The true metrics of a skill come from a million rows. Counted:

- coverage: how often the 95 % intervals of values and of differences hold the truth (93 to 97 % is good);
- false rejections: how often two equal configurations are declared different at 5 %;
- power: how often another test finds the difference that `compare` says is found in four of five cases;
- sweeps of eight: how often any equal pair is declared different or any pair is put in the wrong order, with Holm's
  correction, and how often the truly best configuration has rank 1.

Prints shares of each setting and of all; writes them with their binomial 95 % intervals (Wilson) to comparisons.json
beside this.
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import brentq
from statsmodels.stats.proportion import proportion_confint

from sentexp.compare.comparison import Comparison, Configuration, Scored
from sentexp.compare.metric_sums import measured
from sentexp.compare.sample_size import ALPHA
from sentexp.compare.significance import correct, ranks
from sentexp.compare.statistics import Evidence, measure_configurations
from sentexp.config.metric_names import is_better_higher

METRICS = ("accuracy", "f1_macro", "auroc_macro", "mae")
ROWS, SEEDS = (500, 2500, 10_000), (1, 2, 5)
SHARES = (0.5, 0.3, 0.2)
"""Of the classes."""
SHARED_NOISE, OWN_NOISE = 0.8, 0.6
SEED_SPREAD = 0.03
"""Of the skill, where a configuration has several seeds: about 0.6 points of accuracy."""
SKILLS = np.linspace(0.1, 3.0, 59)
LEAST = 0.25
"""Skill of the lesser of two configurations."""
POPULATION = 1_000_000


class Rows:
    """Rows with their classes and how hard they are."""

    def __init__(self, count: int, chance: np.random.Generator) -> None:
        self.targets = chance.choice(len(SHARES), count, p=SHARES)
        self.hardness = chance.normal(0, SHARED_NOISE, count)

    def answers(self, skill: float, chance: np.random.Generator) -> NDArray[Any]:
        """Return what a run of this skill predicts: probabilities, float32, shape (rows, classes)."""
        own = chance.normal(0, OWN_NOISE, len(self.targets))
        seen = (self.targets - 1) * skill + self.hardness + own
        distances = -np.square(seen[:, None] - np.arange(-1, 2) * skill)
        powers = np.exp(distances - distances.max(1, keepdims=True))
        probabilities: NDArray[Any] = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
        return probabilities


def true_metrics(seed: int) -> dict[str, Callable[[float, float], float]]:
    """Return the true value of each metric, as a function of a skill and the spread of its seeds.

    A polynomial through noisy points: the noise of a million rows is small beside that of 10,000.
    """
    chance = np.random.default_rng(seed)
    rows = Rows(POPULATION, chance)
    values = [measured(rows.targets, rows.answers(float(skill), chance), METRICS).whole() for skill in SKILLS]
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)

    def mean(curve: np.polynomial.Chebyshev, skill: float, spread: float) -> float:
        return float(weights @ curve(skill + spread * nodes) / weights.sum())

    fitted = {name: np.polynomial.Chebyshev.fit(SKILLS, [value[name] for value in values], 12) for name in METRICS}
    return {name: partial(mean, curve) for name, curve in fitted.items()}


def simulate(rows: Rows, skills: Sequence[float], seeds: int, chance: np.random.Generator) -> Comparison:
    """Return configurations of these skills, each with so many runs, on the same rows."""
    configurations = []
    for number, skill in enumerate(skills):
        runs = []
        for seed in range(seeds):
            own = skill + (chance.normal(0, SEED_SPREAD) if seeds > 1 else 0.0)
            runs.append(
                Scored(
                    run_id=f"{number:04x}{seed:04x}",
                    name=f"{number}",
                    seed=str(seed),
                    probabilities=rows.answers(own, chance),
                    file=Path(),
                    settings={"data.ordered": True},
                    metrics={},
                    tags={},
                )
            )
        configurations.append(Configuration(name=str(number), runs=runs))
    labels = [str(number) for number in range(len(SHARES))]
    ids = np.arange(len(rows.targets))
    return Comparison(
        title="simulated",
        split="test",
        labels=labels,
        ids=ids,
        targets=rows.targets,
        slices={},
        configurations=configurations,
    )


class Counts:
    """How often something happened, by setting and by what."""

    def __init__(self) -> None:
        self.hits: dict[tuple[str, ...], list[bool]] = defaultdict(list)

    def add(self, *key: str, hit: bool) -> None:
        """Count a case: whether it happened."""
        self.hits[key].append(bool(hit))

    def shares(self) -> list[dict[str, Any]]:
        """Return the share of each kind of case with its interval."""
        found = []
        for key, hits in self.hits.items():
            low, high = proportion_confint(sum(hits), len(hits), method="wilson")
            share = {"share": sum(hits) / len(hits), "low": low, "high": high, "cases": len(hits)}
            found.append(dict(zip(("what", "metric", "rows", "seeds"), key, strict=True)) | share)
        return found


def pairs(count: int, truth: dict[str, Callable[[float, float], float]], counts: Counts, seed: int) -> None:
    """Compare two configurations many times, equal or not; then two others that differ by what should be found."""
    for rows, seeds in itertools.product(ROWS, SEEDS):
        spread = SEED_SPREAD if seeds > 1 else 0.0
        for number in track(range(count), f"pairs, {rows:,} rows, {seeds} seeds", transient=True):
            chance = np.random.default_rng([seed, rows, seeds, number])
            equal = number % 2 == 0
            skill = float(chance.uniform(0.9, 1.4))
            gap = 0.0 if equal else float(chance.uniform(0.05, 0.15)) * (2500 / rows) ** 0.5
            drawn = Rows(rows, chance)
            comparison = simulate(drawn, [skill, skill + gap], seeds, chance)
            evidence = measure_configurations(
                comparison, comparison.configurations, 2000, number, 0.95, metrics=METRICS
            )
            for metric in METRICS:
                where = (metric, f"{rows}", f"{seeds}")
                true = [truth[metric](one, spread) for one in (skill, skill + gap)]
                _count_pair(evidence, metric, true, where, counts)
            _count_power(evidence, skill + gap / 2, spread, truth, (rows, seeds, number), chance, counts)


def _count_power(
    evidence: Evidence,
    skill: float,
    spread: float,
    truth: dict[str, Callable[[float, float], float]],
    where: tuple[int, int, int],
    chance: np.random.Generator,
    counts: Counts,
) -> None:
    """Count whether two others around a skill, that differ by what should be found, differ significantly."""
    rows, seeds, number = where
    metric = METRICS[number // 2 % len(METRICS)]
    smallest = evidence.detectable(0, 1, metric)

    def lacking(half: float) -> float:
        return abs(truth[metric](skill + half, spread) - truth[metric](skill - half, spread)) - smallest

    if lacking(skill - LEAST) < 0:
        return  # no two differ so much
    half = brentq(lacking, 0, skill - LEAST)
    comparison = simulate(Rows(rows, chance), [skill - half, skill + half], seeds, chance)
    other = measure_configurations(comparison, comparison.configurations, 2000, number, 0.95, metrics=[metric])
    found = bool(other.p_values(metric)[0, 1] <= ALPHA)
    counts.add("stated difference, found", metric, f"{rows}", f"{seeds}", hit=found)


def _count_pair(evidence: Evidence, metric: str, true: list[float], where: tuple[str, ...], counts: Counts) -> None:
    for number, value in enumerate(true):
        interval = evidence.interval(number, metric)
        counts.add("value covered", *where, hit=interval.low <= value <= interval.high)
    gap, interval = true[1] - true[0], evidence.difference(1, 0, metric)
    counts.add("difference covered", *where, hit=interval.low <= gap <= interval.high)
    if gap == 0:
        counts.add("equal, declared different", *where, hit=bool(evidence.p_values(metric)[0, 1] <= ALPHA))


def sweeps(count: int, counts: Counts, seed: int) -> None:
    """Rank eight configurations many times: all alike, or spread with two alike."""
    for rows, seeds in itertools.product(ROWS, SEEDS):
        for number in track(range(count), f"sweeps, {rows:,} rows, {seeds} seeds", transient=True):
            chance = np.random.default_rng([seed, rows, seeds, number, 8])
            middle = float(chance.uniform(0.95, 1.3))
            spread = np.zeros(8) if number % 2 == 0 else chance.normal(0, 0.05, 8)
            skills = [float(skill) for skill in middle + spread]
            skills[-1] = skills[0]
            comparison = simulate(Rows(rows, chance), skills, seeds, chance)
            evidence = measure_configurations(
                comparison, comparison.configurations, 1000, number, 0.95, metrics=METRICS
            )
            for metric in METRICS:
                _count_sweep(evidence, skills, metric, (metric, f"{rows}", f"{seeds}"), counts)


def _count_sweep(evidence: Evidence, skills: list[float], metric: str, where: tuple[str, ...], counts: Counts) -> None:
    higher = is_better_higher(metric)
    values = np.array([evidence.value(number, metric) for number in range(len(skills))])
    p = correct(evidence.p_values(metric), "holm")
    rank = ranks(values, p, higher)
    wrong = [
        p[i, j] <= ALPHA and (skills[i] == skills[j] or (skills[i] > skills[j]) != ((values[i] > values[j]) == higher))
        for i, j in itertools.combinations(range(len(skills)), 2)
    ]
    kind = "alike" if len(set(skills)) == 1 else "spread"
    counts.add(f"8 {kind}, any false rejection", *where, hit=any(wrong))
    first = [rank[number] == 1 for number, skill in enumerate(skills) if skill == max(skills)]
    counts.add(f"8 {kind}, the best has rank 1", *where, hit=first[0])


def show(found: list[dict[str, Any]]) -> None:
    """Print the shares: a line for each setting, a column for each metric."""
    table = Table("%", "rows", "seeds", *METRICS, "cases of each")
    settings = sorted({(one["what"], int(one["rows"]), int(one["seeds"])) for one in found})
    by_key = {(one["what"], int(one["rows"]), int(one["seeds"]), one["metric"]): one for one in found}
    for what, group in itertools.groupby(settings, key=lambda setting: setting[0]):
        for setting in group:
            cells = [by_key[(*setting, metric)] for metric in METRICS]
            shares = [f"{100 * cell['share']:.1f}" for cell in cells]
            table.add_row(what, f"{setting[1]:,}", str(setting[2]), *shares, f"{cells[0]['cases']:,}")
        table.add_section()
    Console(width=120).print(table)


def summarise(found: list[dict[str, Any]]) -> None:
    """Print the shares over all metrics and numbers of rows, with one seed and with several."""
    table = Table("%", "one seed", "cases", "several seeds", "cases")
    for what in sorted({one["what"] for one in found}):
        cells = []
        for several in (False, True):
            kept = [one for one in found if one["what"] == what and (one["seeds"] != "1") == several]
            cases = sum(one["cases"] for one in kept)
            cells += [f"{100 * sum(one['share'] * one['cases'] for one in kept) / cases:.1f}", f"{cases:,}"]
        table.add_row(what, *cells)
    Console(width=120).print(table)


def main() -> None:
    """Simulate, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300, help="for each number of rows and seeds")
    parser.add_argument("--sweeps", type=int, default=200, help="for each number of rows and seeds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts, truth = Counts(), true_metrics(given.seed)
    pairs(given.pairs, truth, counts, given.seed)
    sweeps(given.sweeps, counts, given.seed)
    found = counts.shares()
    show(found)
    summarise(found)
    facts = {"seed": given.seed, "seed_spread": SEED_SPREAD, "shares": found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
