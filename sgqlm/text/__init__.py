"""Text side of a sample: tokenizer, conversation formats, labels, self-questioning. No jax."""
