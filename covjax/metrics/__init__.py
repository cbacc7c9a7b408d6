"""What a model's outputs are worth; `docs/metrics.md` defines every figure."""
