"""Training: the Lightning module, its optimizer and metrics, the trainer and its checkpoints."""
