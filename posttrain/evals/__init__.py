"""Evaluations: intervals and unbiased estimates (`stats`)."""
