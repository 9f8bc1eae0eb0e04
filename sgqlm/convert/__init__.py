"""Weights in and out: one name table, both directions."""
