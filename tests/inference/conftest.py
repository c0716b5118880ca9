"""What the tests of inference share with others."""

from finished_runs import *  # noqa: F403 (fixtures)
