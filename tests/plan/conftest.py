"""What the tests of plans share with others."""

from sweep_runs import *  # noqa: F403 (fixtures)
