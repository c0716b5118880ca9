"""What the tests of serving share with others."""

from finished_runs import *  # noqa: F403 (fixtures)
