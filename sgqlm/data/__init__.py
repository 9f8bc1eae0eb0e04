"""Data on the host: stores, sources, images, entity graphs and batches. Never imports jax."""
