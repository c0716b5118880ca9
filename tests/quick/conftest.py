"""What the tests of quick runs share with others."""

from sweep_runs import *  # noqa: F403 (fixtures)
