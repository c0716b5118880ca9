"""A finished run for other programs."""
