"""Training: stages, optimizer, step, loop and checkpoints."""
