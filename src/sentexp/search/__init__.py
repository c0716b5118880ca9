"""`hydra/sweeper=optuna`: searching instead of sweeping."""
