"""Hydra takes sweepers and launchers from modules of this namespace package only: those of sentexp."""

from sentexp.search import sweeper
from sentexp.sweeps import each, fused, grid, ray_cluster, slurm


class GridSweeper(grid.GridSweeper):
    """`hydra/sweeper=grid`."""


class EachSweeper(each.EachSweeper):
    """`hydra/sweeper=each`."""


class FusedLauncher(fused.FusedLauncher):
    """`hydra/launcher=fused`."""


class RayLauncher(ray_cluster.RayLauncher):
    """`hydra/launcher=ray`."""


class SlurmLauncher(slurm.SlurmLauncher):
    """`hydra/launcher=submitit_slurm`."""


class OptunaSweeper(sweeper.OptunaSweeper):
    """`hydra/sweeper=optuna`."""
