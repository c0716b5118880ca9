"""Data: sources, splits, tokens, batches and the Lightning data module over them."""
