"""Plots of runs, and how plots are drawn."""
