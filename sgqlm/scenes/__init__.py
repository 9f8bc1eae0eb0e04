"""Procedural scenes: objects in drawn relations, with masks, questions and dialogues. No jax."""
