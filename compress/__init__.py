"""Making a hybrid good again, and then small: distillation, pruning, quantization."""
