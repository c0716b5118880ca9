"""Hydra takes sweepers and launchers from modules of this namespace package only: those of sentexp."""

from sentexp.sweeps import grid, search


class GridSweeper(grid.GridSweeper):
    """`hydra/sweeper=grid`."""


class OptunaSweeper(search.OptunaSweeper):
    """`hydra/sweeper=optuna`."""
