"""Relation data for stage `graph`: readers of official files, conversations, built data sets."""
