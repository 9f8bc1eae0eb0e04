"""Generation: sampling, the decode loop, prompts as batches, self-questioning."""
