"""Faults on purpose: what a run survives, and what it refuses."""
