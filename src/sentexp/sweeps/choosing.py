"""`sweep.choose_seeds`: some seeds of a sweep choose the best value of a setting, the others train with that alone."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sentexp.compare.settings import by_value
from sentexp.config.metric_names import is_better_higher
from sentexp.errors import require
from sentexp.system.console import say
from sentexp.tracking.identity import LATER, settings

if TYPE_CHECKING:
    from sentexp.sweeps.launch import Job
    from sentexp.sweeps.sweep_dir import Outcome

Values = dict[str, "list[Job]"]
"""Jobs by their value of the setting that is chosen."""


def check_choice(jobs: "Sequence[Job]") -> None:
    """Refuse to choose a setting that does not vary (`sweep.choose`), before anything is trained.

    Raises:
        UserError: names the key.
    """
    key = jobs[0].config.sweep.choose
    require(
        key is None or len({str(settings(job.config).get(key)) for job in jobs}) > 1,
        f"sweep.choose={key} is not a setting in which these runs differ: sweep over it, or leave sweep.choose null.",
    )


def split_by_seed(jobs: "Sequence[Job]") -> "tuple[list[Job], list[Job]]":
    """Return the jobs that choose (`sweep.choose_seeds`), and those that train with what these choose."""
    asked = jobs[0].config.sweep.choose_seeds
    seeds = list(dict.fromkeys(job.config.seed for job in jobs))[:asked]
    return [job for job in jobs if job.config.seed in seeds], [job for job in jobs if job.config.seed not in seeds]


def one_of_each(jobs: "Sequence[Job]") -> "list[Job]":
    """Return as many jobs as will be started: those that choose, and of the others those with the first value."""
    first, later = split_by_seed(jobs)
    return [*first, *(job for values in _groups(later).values() for job in next(iter(values.values())))]


def at_the_best(
    first: "Sequence[Job]", later: "Sequence[Job]", outcomes: "Mapping[int, Outcome]", monitor: str
) -> "list[Job]":
    """Return those of the later jobs whose value is the best on validation, and say which these are.

    That is the best mean over the seeds; of equal ones it is the smallest value. A value with fewer finished runs than
    another is not chosen, and nothing is where no run is finished.

    Args:
        first: the jobs that choose.
        later: those of other seeds.
        outcomes: of the first ones, by number.
        monitor: what chooses.
    """
    key, following, kept, chosen = first[0].config.sweep.choose, _groups(later), [], []
    sign = 1 if is_better_higher(monitor) else -1
    for name, values in _groups(first).items():
        found = {value: [outcomes[job.number].objective for job in alike] for value, alike in values.items()}
        means = {value: [number for number in known if math.isfinite(number)] for value, known in found.items()}
        most = max(map(len, means.values()))
        complete = sorted((value for value, known in means.items() if len(known) == most > 0), key=by_value)
        if complete:
            best = max(complete, key=lambda value: sign * sum(means[value]))
            kept += following.get(name, {}).get(best, [])
            chosen.append(best)
    if later:
        counted = ", ".join(f"{value} ({chosen.count(value)})" for value in sorted(set(chosen), key=by_value))
        say(f"{key} is chosen on validation: {counted}; {len(kept)} more runs with other seeds")
    return sorted(kept, key=lambda job: job.number)


def _groups(jobs: "Sequence[Job]") -> dict[str, Values]:
    """Return jobs that differ in seed and in the setting alone, by what they share and by their value of it."""
    groups: dict[str, Values] = {}
    for job in jobs:
        known = settings(job.config)
        key = str(job.config.sweep.choose)
        value = str(known.pop(key, LATER.get(key)))
        del known["seed"]
        groups.setdefault(json.dumps(known, sort_keys=True, default=str), {}).setdefault(value, []).append(job)
    return groups
