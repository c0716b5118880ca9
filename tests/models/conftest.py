"""What the tests of export share with others."""

from finished_runs import *  # noqa: F403 (fixtures)
