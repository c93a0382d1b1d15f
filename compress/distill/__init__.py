"""Distillation: training a converted checkpoint on the predictions of the original model."""
