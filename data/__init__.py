"""Read documents, tokenize them, and pack them into sequences for calibration and training."""
