"""Training of one stage: batches in, checkpoints and a log out."""
