"""Which cases of a long list `make slow` tries: the others are tried before a release, by `make exhaustive`."""

import pytest


def exhaustive_but(cases, *tried):
    """Return the cases for `parametrize`: all but those to be tried otherwise have the marker `exhaustive`."""
    return [case if case in tried else pytest.param(case, marks=pytest.mark.exhaustive) for case in cases]
