"""The names of the runs of a sweep: the values in which they differ."""

from collections.abc import Sequence

SMALL = 0.01


def run_names(runs: Sequence[Sequence[str]]) -> list[str]:
    """Return a name for each run, such as `r=16 lr=2e-4`: the overrides that differ, by the last word of their keys.

    Keys whose last words are the same keep as many words as it takes. A single one is named by all of its overrides.

    Args:
        runs: the overrides of each run.
    """
    values = [dict(_split(override) for override in run) for run in runs]
    keys = list(dict.fromkeys(key for run in values for key in run if not key.startswith("sweep.")))
    differing = [key for key in keys if len({run.get(key) for run in values}) > 1] or keys
    short = _short_names(differing)
    return [
        " ".join(f"{short[key]}={_short_value(run[key])}" for key in differing if key in run) or "defaults"
        for run in values
    ]


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _short_names(keys: list[str]) -> dict[str, str]:
    short = {}
    for key in keys:
        words = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        count = next(
            n for n in range(1, len(words) + 1) if n == len(words) or all(o[-n:] != words[-n:] for o in others)
        )
        short[key] = ".".join(words[-count:])
    return short


def _short_value(value: str) -> str:
    """Return a value as people write it: `2e-4` where hydra says 0.0002, and `2000` where MLflow has 2000.0."""
    try:
        number = float(value)
    except ValueError:
        return value
    if number == 0 or not abs(number) < SMALL:  # nan is neither
        return value.removesuffix(".0")
    mantissa, _, exponent = f"{number:e}".partition("e")
    short = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return short if float(short) == number else value
