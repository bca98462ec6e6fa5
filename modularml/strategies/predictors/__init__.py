"""Predictions of several experiments together."""
