"""Metrics: one file a benchmark, numbers in and numbers out; no model and no jax."""
