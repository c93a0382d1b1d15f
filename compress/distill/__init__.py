"""Distillation: a converted checkpoint learns from the model that it came from."""
