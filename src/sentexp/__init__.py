"""sentexp: fine-tune language models for sentiment classification, and know which configuration is really better."""

__version__ = "0.1.0"
