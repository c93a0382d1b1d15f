"""FP8 checkpoints: schemes, which blocks stay as they are, and the streaming of it."""
