"""Export of checkpoints to ONNX and GGUF."""
