"""Tracking: the MLflow store, the identity and provenance of a run, its pictures."""
