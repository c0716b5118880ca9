"""Metrics: their names, their values."""
