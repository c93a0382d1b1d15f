"""Distillation, pruning and quantization."""
