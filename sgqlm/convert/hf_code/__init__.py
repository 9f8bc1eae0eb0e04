"""The torch files that an exported folder ships; they run without sgqlm and without jax."""
