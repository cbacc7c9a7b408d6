"""Inference on your own images: python -m covjax.predict."""
