"""Speed and memory of checkpoints: measured here, or predicted for a GPU."""
