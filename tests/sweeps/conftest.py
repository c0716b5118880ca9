"""What the tests of sweeps share with others."""

from sweep_runs import *  # noqa: F403 (fixtures)
