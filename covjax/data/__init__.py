"""From files on disk to batches on the host. Nothing here imports jax."""
