"""Layers over rows without padding, for one run or several at once."""
