"""Phases and groups of phases, as values."""
