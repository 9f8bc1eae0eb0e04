"""The model: pure functions, and thin linen modules that own their parameters."""
