"""What a search prints beyond what a sweep does."""

from collections.abc import Sequence

from sentexp.search.study import is_maximised
from sentexp.system.console import say


def print_front(objectives: Sequence[str], runs: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Print the runs that no other beats in every objective, the best of the first objective first."""
    sign = -1 if is_maximised(objectives[0]) else 1
    say(f"No other run is better in all of {', '.join(objectives)} than:")
    for name, values in sorted(runs, key=lambda run: sign * run[1][0]):
        say(f"  {name}: {', '.join(f'{value:.4g}' for value in values)}")
