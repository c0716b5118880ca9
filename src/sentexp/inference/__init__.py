"""A finished run in use: labels and probabilities of other texts, and its metrics on other data."""
