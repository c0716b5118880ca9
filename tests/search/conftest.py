"""What the tests of searches share with others."""

from sweep_runs import *  # noqa: F403 (fixtures)
