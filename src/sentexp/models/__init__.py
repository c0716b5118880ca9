"""Models: backbone and tokenizer, adapters and their audit, the scoring of classes."""
