"""Sweeps: which runs, in which order and process, what became of them."""
