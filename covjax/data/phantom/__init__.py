"""Phantoms, synthetic images and masks: python -m covjax.data.phantom."""
