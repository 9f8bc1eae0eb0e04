"""Evaluation: runners, baselines and reports."""
