"""Text in, rows of tokens out: what calibration and distillation are fed with."""
