"""A trained network for other programs: safetensors, StableHLO, ONNX."""
