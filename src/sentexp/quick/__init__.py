"""Quick runs: two steps of a configuration and all that follows them, to see in a minute what would fail."""
