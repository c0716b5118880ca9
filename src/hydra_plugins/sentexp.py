"""Hydra takes sweepers and launchers from modules of this namespace package only: those of sentexp."""

from sentexp.sweeps import grid


class GridSweeper(grid.GridSweeper):
    """`hydra/sweeper=grid`."""
