"""Phases and groups of phases."""
