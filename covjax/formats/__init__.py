"""A trained network for other programs: as StableHLO and as ONNX."""
