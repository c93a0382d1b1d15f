"""Looking at checkpoints: what they are made of, whether they are sound, what they remember."""
