"""What the tests that need a CUDA GPU share with others."""

from finished_runs import *  # noqa: F403 (fixtures)
from sweep_runs import *  # noqa: F403 (fixtures)
