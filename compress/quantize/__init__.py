"""Stores the linear layers of a checkpoint in FP8: schemes, plan, and quantized tensors."""
