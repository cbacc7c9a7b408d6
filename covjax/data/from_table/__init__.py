"""Lays out your own data set as the published one: python -m covjax.data.from_table."""
