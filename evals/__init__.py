"""Evaluation of checkpoints: accuracy with lm-eval, perplexity, speed and memory, and reports."""
