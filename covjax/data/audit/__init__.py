"""Checks of a data set before training: python -m covjax.data.audit."""
