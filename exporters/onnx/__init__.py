"""Export to ONNX: two graphs with shared weights, for onnxruntime."""
